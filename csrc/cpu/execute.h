// Runs the dispatches of one command buffer.
#pragma once

#include "core/interrupt.h"
#include "cpu/queue.h"
#include "cpu/thread_pool.h"

namespace metal_sdpa::cpu {

/// Runs the job on this thread and the pool; what goes wrong is kept in job.error. `poller` is
/// asked on this thread (null: never); cancelling it discards the rest of the job.
void execute_job(Job& job, ThreadPool& pool, InterruptPoller* poller) noexcept;

}  // namespace metal_sdpa::cpu
