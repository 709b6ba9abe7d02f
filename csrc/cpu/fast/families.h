// The fast families: their plans and the names of their kernels.
#pragma once

#include "cpu/isa.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa::cpu {

enum class Family { prefill, decode };

/// "sdpa_prefill_f16.avx2"; the text lives as long as the process.
const char* fast_kernel_name(Family family, DType dtype, Isa isa);

/// Query rows under one KV head, L * Hq / Hkv.
std::int64_t rows_per_kv_head(const SdpaProblem& problem);

/// Fill the plan, or return false where the family does not take the problem. plan_decode is asked
/// first. A family that problem.kernel names takes all it can, whatever suits it best.
bool plan_decode(const SdpaProblem& problem, Isa isa, Plan& plan);
bool plan_prefill(const SdpaProblem& problem, Isa isa, Plan& plan);

}  // namespace metal_sdpa::cpu
