// One command buffer of the Metal device.
#pragma once

#include <memory>

#include "core/backend.h"
#include "metal/queue.h"

namespace metal_sdpa {

class MetalPipeline;

class MetalStream final : public CommandStream {
 public:
  explicit MetalStream(std::shared_ptr<MetalQueue> queue);
  ~MetalStream() override;

  void dispatch(const Dispatch& dispatch) override;
  void barrier() override;
  void commit() override;
  void wait() override;
  void commit_and_wait() override;
  double gpu_time_s() const override;

 private:
  MTL::ComputeCommandEncoder& encoder();
  void open_command_buffer();
  void bind(MTL::ComputeCommandEncoder& target, const Dispatch& dispatch);
  void end_encoding();

  std::shared_ptr<MetalQueue> queue_;
  NS::SharedPtr<MTL::CommandBuffer> command_buffer_;
  NS::SharedPtr<MTL::ComputeCommandEncoder> encoder_;
  std::shared_ptr<Submission> submission_ = std::make_shared<Submission>();
  bool committed_ = false;
};

}  // namespace metal_sdpa
