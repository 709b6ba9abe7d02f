// The command queue.
#include "metal/queue.h"

#include <utility>

#include "core/fork.h"
#include "core/text.h"

namespace metal_sdpa {
namespace {

// [queue commandBuffer] blocks while as many command buffers as the queue was made for exist. Open
// encoders would block it for good, so they are counted and refused before; those in flight only
// make it wait for the device.
constexpr int kMaxOpen = 256;
constexpr NS::UInteger kMaxInFlight = 64;

}  // namespace

MetalQueue::MetalQueue(NS::SharedPtr<MTL::Device> device)
    : device_(std::move(device)),
      queue_(NS::TransferPtr(device_->newCommandQueue(kMaxOpen + kMaxInFlight))),
      fence_(NS::TransferPtr(device_->newFence())),
      descriptor_(NS::TransferPtr(MTL::CommandBufferDescriptor::alloc()->init())),
      fork_generation_(metal_sdpa::fork_generation()) {
  if (!queue_ || !fence_) {
    fail(ErrorCode::buffer_allocation, "Device: kind: metal: the device gave no command queue");
  }
  queue_->setLabel(ns_string("metal_sdpa"));
  descriptor_->setErrorOptions(MTL::CommandBufferErrorOptionEncoderExecutionStatus);
  residency_ = ResidencySet::create(*device_.get(), *queue_.get());
  prime_fence();
}

MetalQueue::~MetalQueue() {
  if (!same_process()) {
    device_.detach();
    queue_.detach();
    fence_.detach();
    descriptor_.detach();
    if (residency_ != nullptr) residency_->abandon();
    return;
  }
  const AutoreleaseScope pool;
  in_flight_->drain();
  if (residency_ != nullptr) queue_->removeResidencySet(residency_->get());
}

void MetalQueue::prime_fence() {
  // A fence may be waited for only after some encoder was to update it.
  MTL::CommandBuffer* first = queue_->commandBuffer(descriptor_.get());
  first->setLabel(ns_string("metal_sdpa fence"));
  MTL::ComputeCommandEncoder* encoder = first->computeCommandEncoder(MTL::DispatchTypeConcurrent);
  encoder->updateFence(fence_.get());
  encoder->endEncoding();
  first->commit();
}

bool MetalQueue::same_process() const noexcept {
  return fork_generation_ == metal_sdpa::fork_generation();
}

void MetalQueue::require_same_process(const char* call) const {
  if (same_process()) return;
  fail(ErrorCode::unsupported, call, ": the metal device does not work after fork(); ",
       "start the process anew (spawn) or use the cpu device");
}

NS::SharedPtr<MTL::CommandBuffer> MetalQueue::command_buffer() {
  if (++open_ > kMaxOpen) {
    --open_;
    fail_argument("command_encoder: ", kMaxOpen,
                  " encoders hold uncommitted work; commit or drop some of them");
  }
  auto buffer = NS::RetainPtr(queue_->commandBuffer(descriptor_.get()));
  if (buffer) return buffer;
  --open_;
  fail(ErrorCode::command_buffer, "command_encoder: the device gave no command buffer");
}

}  // namespace metal_sdpa
