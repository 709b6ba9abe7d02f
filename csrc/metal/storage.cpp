// MTLBuffers as storages.
#include "metal/storage.h"

#include <unistd.h>

#include <utility>

#include "core/fork.h"
#include "metal/residency.h"

namespace metal_sdpa {

MetalStorage::MetalStorage(NS::SharedPtr<MTL::Buffer> buffer, const Backend* owning_backend,
                           std::shared_ptr<void> owner)
    : owner_(std::move(owner)),
      buffer_(std::move(buffer)),
      fork_generation_(metal_sdpa::fork_generation()) {
  backend = owning_backend;
  byte_len = buffer_->length();
  const bool is_private = buffer_->storageMode() == MTL::StorageModePrivate;
  host = is_private ? nullptr : buffer_->contents();
  address = is_private ? buffer_->gpuAddress() : reinterpret_cast<std::uint64_t>(host);
}

MetalStorage::~MetalStorage() {
  if (fork_generation_ != metal_sdpa::fork_generation()) {
    buffer_.detach();  // Metal's objects are not to be touched in a forked child
    return;
  }
  const AutoreleaseScope pool;
  if (residency_ != nullptr) residency_->remove(buffer_.get());
  buffer_.reset();
}

void MetalStorage::set_residency(std::shared_ptr<ResidencySet> residency) {
  residency_ = std::move(residency);
  if (residency_ != nullptr) residency_->add(buffer_.get());
}

std::size_t page_byte_len() noexcept {
  static const std::size_t length = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return length;
}

}  // namespace metal_sdpa
