// The fast kernel families, sdpa_prefill and sdpa_decode, one build of each per instruction set.
#pragma once

#include <functional>

#include "cpu/plan_target.h"
#include "metal_sdpa/native_kernel.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa::cpu {

/// Adds the kernels of every supported instruction set, named like "sdpa_decode_f16.avx2".
void register_fast(const std::function<void(const char* name, NativeKernel kernel)>& add);

/// Fills the plan, or returns false where the straightforward kernel should take the problem.
bool plan_fast(const SdpaProblem& problem, const PlanTarget& target, Plan& plan);

}  // namespace metal_sdpa::cpu
