// A plan run at once on the calling thread, without a command buffer in between.
#pragma once

#include <memory>
#include <vector>

#include "core/backend.h"
#include "cpu/queue.h"

namespace metal_sdpa::cpu {

/// Runs the plan where the queue is idle and returns true when it is done; false, having done
/// nothing, where other work is under way. Throws what a command buffer's wait would throw.
bool run_immediately(Queue& queue, const KernelRegistry& registry, const Plan& plan,
                     const SdpaOperands& operands,
                     const std::vector<std::shared_ptr<Storage>>& scratch, int threads);

}  // namespace metal_sdpa::cpu
