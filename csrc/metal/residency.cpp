// Residency sets.
#include "metal/residency.h"

namespace metal_sdpa {

std::shared_ptr<ResidencySet> ResidencySet::create(MTL::Device& device, MTL::CommandQueue& queue) {
  if (!responds_to(&device, "newResidencySetWithDescriptor:error:")) return nullptr;
  const auto descriptor = NS::TransferPtr(MTL::ResidencySetDescriptor::alloc()->init());
  descriptor->setLabel(ns_string("metal_sdpa"));
  NS::Error* error = nullptr;
  auto set = NS::TransferPtr(device.newResidencySet(descriptor.get(), &error));
  if (!set) return nullptr;  // costs speed only
  queue.addResidencySet(set.get());
  return std::make_shared<ResidencySet>(std::move(set));
}

void ResidencySet::add(const MTL::Buffer* buffer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  set_->addAllocation(buffer);
  changed_ = true;
}

void ResidencySet::remove(const MTL::Buffer* buffer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  set_->removeAllocation(buffer);
  set_->commit();  // at once: until then the set keeps the memory
  changed_ = false;
}

void ResidencySet::flush() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!changed_) return;
  set_->commit();
  changed_ = false;
}

}  // namespace metal_sdpa
