// Keeps the device's allocations resident, so that a command buffer does not page them in.
#pragma once

#include <memory>
#include <mutex>
#include <utility>

#include "metal/metal_cpp.h"

namespace metal_sdpa {

/// An MTLResidencySet (macOS 15) attached to a queue. Safe from any thread. Additions take effect
/// at the next flush: one call a command buffer, however many buffers come.
class ResidencySet {
 public:
  /// nullptr where the system has no residency sets or gives none.
  static std::shared_ptr<ResidencySet> create(MTL::Device& device, MTL::CommandQueue& queue);

  explicit ResidencySet(NS::SharedPtr<MTL::ResidencySet> set) : set_(std::move(set)) {}

  void add(const MTL::Buffer* buffer);
  void remove(const MTL::Buffer* buffer);
  void flush();

  MTL::ResidencySet* get() const noexcept { return set_.get(); }
  /// Forgets the object without releasing it, in a forked child.
  void abandon() noexcept { set_.detach(); }

 private:
  NS::SharedPtr<MTL::ResidencySet> set_;
  std::mutex mutex_;
  bool changed_ = false;
};

}  // namespace metal_sdpa
