// What the CPU device does for a problem.
#pragma once

#include "cpu/plan_target.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa::cpu {

/// Pure. InvalidArgument where problem.kernel names a family that cannot take the problem.
Plan plan_sdpa(const SdpaProblem& problem, const PlanTarget& target);

}  // namespace metal_sdpa::cpu
