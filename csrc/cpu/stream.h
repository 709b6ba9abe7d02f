// A command buffer of the CPU device.
#pragma once

#include <memory>

#include "core/backend.h"
#include "cpu/queue.h"

namespace metal_sdpa::cpu {

class CpuStream final : public CommandStream {
 public:
  CpuStream(std::shared_ptr<Queue> queue, int threads);

  void dispatch(const Dispatch& dispatch) override;
  void barrier() override {}  // dispatches run one after the other
  void commit() override;
  void wait() override;
  void commit_and_wait() override;
  double gpu_time_s() const override;

 private:
  std::shared_ptr<Queue> queue_;
  std::shared_ptr<Job> job_;
};

}  // namespace metal_sdpa::cpu
