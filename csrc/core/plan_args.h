// The parts of a plan's steps that are the same on every device.
#pragma once

#include "metal_sdpa/sdpa.h"
#include "shaders/sdpa_args.h"

namespace metal_sdpa {

/// The argument block of a problem: all rows, spans of `span_len` keys, room for the spans of
/// kv_capacity's longest present sequence.
SdpaArgs sdpa_args(const SdpaProblem& problem, std::uint32_t span_len);

/// Binds `args`, and the sequences where the batch has lengths or starts of its own.
void bind_sdpa_args(const SdpaProblem& problem, const SdpaArgs& args, PlanStep& step);

/// Binds q, k and v, and declares them read.
void bind_sdpa_inputs(const SdpaProblem& problem, PlanStep& step);

/// Binds q, k, v, out and (with return_lse) lse, and declares them read and written.
void bind_sdpa_operands(const SdpaProblem& problem, PlanStep& step);

/// Binds and declares out and (with return_lse) lse only, as the merge of partial states does.
void bind_sdpa_outputs(const SdpaProblem& problem, PlanStep& step);

/// Longest kv_len of the batch.
std::int64_t longest_kv_len(const SdpaProblem& problem);

/// Pairs (query, visible key) of one head, summed over the batch; of one sequence.
double visible_pairs(const SdpaProblem& problem);
double visible_pairs(const SdpaProblem& problem, std::int64_t b);

/// Keys that any query of sequence b sees: the first so many.
std::int64_t visible_keys(const SdpaProblem& problem, std::int64_t b);

/// The kernel name of a dtype: `f32` itself, or with _f16 or _bf16 behind it.
struct DTypeNames {
  const char* f32;
  const char* f16;
  const char* bf16;
  const char* of(DType dtype) const;
};

}  // namespace metal_sdpa
