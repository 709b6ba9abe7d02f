// The fast families: their plans and the names of their kernels.
#pragma once

#include "cpu/fast/fast.h"
#include "shaders/sdpa_args.h"

namespace metal_sdpa::cpu {

enum class Family { prefill, decode };

/// "sdpa_prefill_f16.avx2"; the text lives as long as the process.
const char* fast_kernel_name(Family family, DType dtype, Isa isa);

/// Query rows under one KV head, L * Hq / Hkv.
std::int64_t rows_per_kv_head(const SdpaProblem& problem);

/// The same of the sequence with the most rows in use: what kernels and spans are chosen by, so
/// that rows out of use change no bit.
std::int64_t rows_in_use(const SdpaProblem& problem);

/// Keys that lie between those that any row of sequence b sees.
std::int64_t keys_in_reach(const SdpaProblem& problem, std::int64_t b);

/// Bytes of the states of all rows for `spans` spans, as span_states.h has them; also where no
/// machine has so many. The spans are those of all sequences together.
double state_bytes(const SdpaProblem& problem, double spans);

/// Spans that any row of sequence b sees, from the first to the last.
std::int64_t visible_spans(const SdpaProblem& problem, std::int64_t b, std::int64_t span_len);

/// Scratch memory for the states of `spans` spans and for `head_counters` counters of each KV head,
/// bound to the last step of the plan.
void bind_states(const SdpaProblem& problem, std::int64_t spans, std::int64_t head_counters,
                 Plan& plan);

/// Fill the plan, or return false where the family does not take the problem. plan_decode is asked
/// first. A family that problem.kernel names takes all it can, whatever suits it best.
bool plan_decode(const SdpaProblem& problem, const PlanTarget& target, Plan& plan);
bool plan_prefill(const SdpaProblem& problem, const PlanTarget& target, Plan& plan);

}  // namespace metal_sdpa::cpu
