// A plan run at once on the calling thread, without a command buffer in between.
#pragma once

#include "core/backend.h"
#include "core/dispatch.h"
#include "cpu/queue.h"

namespace metal_sdpa::cpu {

/// A step as its kernel sees it; fills with 0 what the step wants so. The plan, the operands and
/// the scratch must outlive it.
NativeLaunch bind_step(const PlanStep& step, const SdpaOperands& operands,
                       const ScratchList& scratch);

/// Runs the plan where the queue is idle and returns true when it is done; false, having done
/// nothing, where other work is under way. Throws what a command buffer's wait would throw.
bool run_immediately(Queue& queue, const KernelRegistry& registry, const Plan& plan,
                     const SdpaOperands& operands, const ScratchList& scratch, int threads);

}  // namespace metal_sdpa::cpu
