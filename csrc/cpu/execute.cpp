// One dispatch is one fork-join; one command buffer is its dispatches in order.
#include "cpu/execute.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>

#include "core/text.h"
#include "cpu/plan_target.h"

namespace metal_sdpa::cpu {
namespace {

// Work of unknown size: as many kernel threads as make a fork-join likely to pay.
constexpr std::uint64_t kThreadsPerWorker = 4096;

int threads_for(const KernelRun& run) {
  const std::uint64_t groups = run.launch.threadgroups.count();
  double useful = 0;
  if (run.flops >= 0) {
    useful = run.flops / kFlopsPerThread;
  } else {
    const double size = static_cast<double>(run.launch.threadgroup_size.count());
    useful = static_cast<double>(groups) * size / static_cast<double>(kThreadsPerWorker);
  }
  const auto limit = static_cast<std::uint64_t>(run.max_threads);
  const double most = static_cast<double>(std::min(groups, limit));
  return std::max(1, static_cast<int>(std::min(useful, most)));
}

void bind(const Dispatch& dispatch, NativeLaunch& launch) {
  launch.threadgroups = dispatch.threadgroups;
  launch.threadgroup_size = dispatch.threadgroup_size;
  for (const DispatchBinding& binding : dispatch.bindings) {
    BoundMemory& memory = launch.bindings[binding.index];
    memory.byte_len = binding.byte_len;
    if (binding.storage != nullptr) {
      memory.data = static_cast<char*>(binding.storage->host) + binding.byte_offset;
      if (binding.zero_first) std::memset(memory.data, 0, memory.byte_len);
    } else {
      memory.data = const_cast<std::byte*>(binding.bytes.data());  // kernels only read it
    }
  }
}

void fork_join(const KernelRun& run, std::atomic<bool>& cancelled, ThreadPool& pool,
               InterruptPoller* poller) {
  const int threads = threads_for(run);
  ParallelWork work;
  work.kernel = run.pipeline.kernel;
  work.launch = &run.launch;
  work.total = run.launch.threadgroups.count();
  work.dealt = run.dealt;
  work.cancelled = &cancelled;
  pool.run(threads, work, poller);
}

void run_all(Job& job, ThreadPool& pool, InterruptPoller* poller) {
  for (const Dispatch& dispatch : job.dispatches) {
    NativeLaunch launch;
    bind(dispatch, launch);
    const auto& pipeline = static_cast<const NativePipeline&>(*dispatch.pipeline);
    run_kernel({pipeline, launch, dispatch.flops, job.threads, dispatch.dealt}, job.cancelled, pool,
               poller);
  }
}

}  // namespace

void run_kernel(const KernelRun& run, std::atomic<bool>& cancelled, ThreadPool& pool,
                InterruptPoller* poller) {
  try {
    fork_join(run, cancelled, pool, poller);
  } catch (const std::exception& error) {
    fail(ErrorCode::command_buffer, "cpu: kernel ", run.pipeline.name, ": ", error.what());
  } catch (...) {
    fail(ErrorCode::command_buffer, "cpu: kernel ", run.pipeline.name,
         ": threw what is no std::exception");
  }
  if (cancelled.load()) {
    fail(ErrorCode::interrupted, "cpu: kernel ", run.pipeline.name, " was cancelled");
  }
}

void execute_job(Job& job, ThreadPool& pool, InterruptPoller* poller) noexcept {
  const auto start = std::chrono::steady_clock::now();
  try {
    if (job.cancelled.load()) fail(ErrorCode::interrupted, "cpu: the work was cancelled");
    run_all(job, pool, poller);
  } catch (const Error& error) {
    job.fail(error.code(), error.what());
  } catch (const std::exception& error) {
    job.fail(ErrorCode::command_buffer, error.what());
  }
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  job.run_time_s = taken.count();
}

}  // namespace metal_sdpa::cpu
