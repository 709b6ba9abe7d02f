// Memory of the Metal device.
#pragma once

#include <cstdint>
#include <memory>

#include "core/backend.h"
#include "metal/metal_cpp.h"

namespace metal_sdpa {

class ResidencySet;

/// An MTLBuffer, held together with whatever else has to live as long.
class MetalStorage final : public Storage {
 public:
  /// Takes over one reference. `owner` may be null; it is let go after the buffer is.
  MetalStorage(NS::SharedPtr<MTL::Buffer> buffer, const Backend* owning_backend,
               std::shared_ptr<void> owner);
  ~MetalStorage() override;

  void* native_handle() const noexcept override { return buffer_.get(); }
  MTL::Buffer* buffer() const noexcept { return buffer_.get(); }

  /// The set that holds the buffer resident; it is told when the buffer goes.
  void set_residency(std::shared_ptr<ResidencySet> residency);

 private:
  std::shared_ptr<void> owner_;
  NS::SharedPtr<MTL::Buffer> buffer_;
  std::shared_ptr<ResidencySet> residency_;
  std::uint64_t fork_generation_;
};

/// The bytes of one page: wrapped host memory starts at a page and is whole pages long.
std::size_t page_byte_len() noexcept;

}  // namespace metal_sdpa
