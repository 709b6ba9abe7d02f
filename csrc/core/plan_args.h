// The parts of a plan's steps that are the same on every device.
#pragma once

#include "core/band.h"
#include "metal_sdpa/sdpa.h"
#include "shaders/sdpa_args.h"

namespace metal_sdpa {

/// The argument block of a problem: all rows, spans of `span_len` keys, room for the spans of
/// kv_capacity's longest present sequence.
SdpaArgs sdpa_args(const SdpaProblem& problem, std::uint32_t span_len);

/// Binds `args`, and the sequences where the batch has lengths or starts of its own.
void bind_sdpa_args(const SdpaProblem& problem, const SdpaArgs& args, PlanStep& step);

/// Binds q, k, v, a mask and slopes, and declares them read; sets the constants of what happens to
/// scores.
void bind_sdpa_inputs(const SdpaProblem& problem, PlanStep& step);

/// Both of them.
void bind_sdpa_operands(const SdpaProblem& problem, PlanStep& step);

/// Binds out, and lse and sinks where the problem has them, and declares them written and read: all
/// that the merge of partial states needs of the problem.
void bind_sdpa_outputs(const SdpaProblem& problem, PlanStep& step);

/// One past the last key that any query of sequence b sees.
std::int64_t visible_keys(const SdpaProblem& problem, std::int64_t b);

/// The kernel name of a dtype: `f32` itself, or with _f16 or _bf16 behind it.
struct DTypeNames {
  const char* f32;
  const char* f16;
  const char* bf16;
  const char* of(DType dtype) const;
};

}  // namespace metal_sdpa
