// The device's one command queue and what its command buffers share.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "metal/in_flight.h"
#include "metal/metal_cpp.h"
#include "metal/residency.h"

namespace metal_sdpa {

/// Safe from any thread.
class MetalQueue {
 public:
  /// Throws BufferAllocationError where the device gives no queue.
  explicit MetalQueue(NS::SharedPtr<MTL::Device> device);
  ~MetalQueue();
  MetalQueue(const MetalQueue&) = delete;
  MetalQueue& operator=(const MetalQueue&) = delete;

  /// Unsupported in a child of the process that made the queue: Metal does not survive fork().
  void require_same_process(const char* call) const;
  bool same_process() const noexcept;

  /// A command buffer that counts as open until release_slot; InvalidArgument where too many are.
  NS::SharedPtr<MTL::CommandBuffer> command_buffer();
  void release_slot() noexcept { --open_; }

  MTL::Device& device() const noexcept { return *device_.get(); }
  /// Every encoder waits for it first and updates it last: that orders command buffers, also over
  /// memory that Metal does not track (untracked buffers of others, two wraps of the same bytes).
  MTL::Fence* fence() const noexcept { return fence_.get(); }
  const std::shared_ptr<ResidencySet>& residency() const noexcept { return residency_; }
  /// Outlives the queue where completion handlers are still to come.
  const std::shared_ptr<InFlight>& in_flight() const noexcept { return in_flight_; }

  std::uint64_t next_label() noexcept { return ++labels_; }

 private:
  void prime_fence();

  NS::SharedPtr<MTL::Device> device_;
  NS::SharedPtr<MTL::CommandQueue> queue_;
  NS::SharedPtr<MTL::Fence> fence_;
  NS::SharedPtr<MTL::CommandBufferDescriptor> descriptor_;
  std::shared_ptr<ResidencySet> residency_;
  std::shared_ptr<InFlight> in_flight_ = std::make_shared<InFlight>();
  std::atomic<int> open_{0};
  std::atomic<std::uint64_t> labels_{0};
  std::uint64_t fork_generation_;
};

}  // namespace metal_sdpa
