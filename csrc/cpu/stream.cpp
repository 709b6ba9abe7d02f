// A command buffer of the CPU device.
#include "cpu/stream.h"

#include <utility>

namespace metal_sdpa::cpu {

CpuStream::CpuStream(std::shared_ptr<Queue> queue, int threads)
    : queue_(std::move(queue)), job_(std::make_shared<Job>()) {
  job_->threads = threads;
}

void CpuStream::dispatch(const Dispatch& dispatch) { job_->dispatches.push_back(dispatch); }

void CpuStream::commit() { queue_->submit(job_); }

void CpuStream::wait() { queue_->wait(job_); }

void CpuStream::commit_and_wait() { queue_->run(job_); }

double CpuStream::gpu_time_s() const { return job_->run_time_s; }

}  // namespace metal_sdpa::cpu
