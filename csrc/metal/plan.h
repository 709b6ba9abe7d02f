// The Metal device's planner: pure, needs no device.
#pragma once

#include "metal/facts.h"
#include "metal_sdpa/plan.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa {

/// Steps for a problem that passed validate_problem. Kernel and span choice read only a
/// sequence's rows in use, kv_len and q_start, D, Dv, dtype, group size and options, so that the
/// bits of one sequence never depend on the batch it is in. InvalidArgument for a kernel that does
/// not exist.
Plan plan_metal_sdpa(const SdpaProblem& problem, const MetalFacts& facts);

}  // namespace metal_sdpa
