// The fast families: their plans and the names of their kernels.
#pragma once

#include "cpu/fast/fast.h"
#include "shaders/sdpa_args.h"

namespace metal_sdpa::cpu {

enum class Family { prefill, decode };

/// "sdpa_prefill_f16.avx2"; the text lives as long as the process.
const char* fast_kernel_name(Family family, DType dtype, Isa isa);

/// The sequences of a problem that one step attends: those of one kernel and one length of spans.
/// They are chosen by a sequence's own rows in use, so that no bit depends on the others.
struct BatchPart {
  std::vector<std::int64_t> sequences;
  bool is_whole = true;          ///< all of the problem's
  std::int64_t rows_in_use = 0;  ///< under one KV head, of one of them; all are treated alike
};

/// Query rows of sequence b under one KV head that are to be written, L * Hq / Hkv, and those in
/// use.
std::int64_t rows_to_write(const SdpaProblem& problem, std::int64_t b);
std::int64_t rows_in_use(const SdpaProblem& problem, std::int64_t b);

template <typename Run>
void for_each_sequence(const SdpaProblem& problem, const BatchPart& part, const Run& run) {
  if (!part.is_whole) {
    for (const std::int64_t b : part.sequences) run(b);
    return;
  }
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    if (rows_to_write(problem, b) > 0) run(b);
  }
}

/// Multiply-adds of the part, twice their number.
double part_flops(const SdpaProblem& problem, const BatchPart& part);

/// Keys that lie between those that any row of sequence b sees.
std::int64_t keys_in_reach(const SdpaProblem& problem, std::int64_t b);

/// Bytes of `states` states of each KV head, as span_states.h has them; also where no machine has
/// so many.
double state_bytes(const SdpaProblem& problem, double states);

/// Spans that any row of sequence b sees, from the first to the last.
std::int64_t visible_spans(const SdpaProblem& problem, std::int64_t b, std::int64_t span_len);

/// Scratch memory for `states` states and for `head_counters` counters of each KV head, bound to
/// the last step of the plan.
void bind_states(const SdpaProblem& problem, std::int64_t states, std::int64_t head_counters,
                 Plan& plan);

/// Whether measurement favours sdpa_decode for so many rows in use under one KV head.
bool decode_suits(const SdpaProblem& problem, const PlanTarget& target, std::int64_t rows);

/// Keys of a span of sdpa_prefill for so many rows in use under one KV head.
std::int64_t prefill_span_len(const SdpaProblem& problem, std::int64_t rows);

/// Add the step of a part to the plan.
void plan_decode(const SdpaProblem& problem, const BatchPart& part, const PlanTarget& target,
                 Plan& plan);
void plan_prefill(const SdpaProblem& problem, const BatchPart& part, const PlanTarget& target,
                  Plan& plan);

}  // namespace metal_sdpa::cpu
