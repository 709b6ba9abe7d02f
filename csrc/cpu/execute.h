// Runs kernels: those of one command buffer, or one by itself.
#pragma once

#include "core/interrupt.h"
#include "cpu/native_library.h"
#include "cpu/queue.h"
#include "cpu/thread_pool.h"

namespace metal_sdpa::cpu {

/// Runs the job on this thread and the pool; what goes wrong is kept in the job. `poller` is
/// asked on this thread (null: never); cancelling it discards the rest of the job.
void execute_job(Job& job, ThreadPool& pool, InterruptPoller* poller) noexcept;

/// One launch of a kernel.
struct KernelRun {
  const NativePipeline& pipeline;
  const NativeLaunch& launch;
  double flops = -1;  ///< estimate; negative: unknown
  int max_threads = 1;
  bool dealt = false;  ///< a threadgroup is what a thread is to take at once
};

/// Runs it on this thread and the pool. Errors: command_buffer with the kernel's own text,
/// interrupted where it was cancelled.
void run_kernel(const KernelRun& run, std::atomic<bool>& cancelled, ThreadPool& pool,
                InterruptPoller* poller);

}  // namespace metal_sdpa::cpu
