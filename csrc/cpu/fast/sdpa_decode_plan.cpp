// The plan of sdpa_decode: one step, one work item a span of each KV head.
#include <algorithm>

#include "core/plan_args.h"
#include "cpu/fast/families.h"
#include "cpu/fast/sdpa_decode.h"

namespace metal_sdpa::cpu {
namespace {

/// Query rows under one KV head up to which measurement favours sdpa_decode: from there on
/// sdpa_prefill multiplies faster, which packs K and V once for all rows; sooner where bf16
/// products are of pairs, which sdpa_decode makes of K alone. The baseline is slow at widening.
std::int64_t most_rows(DType dtype, Isa isa) {
  const bool is_bf16 = dtype == DType::bf16;
  switch (isa) {
    case Isa::baseline:
      return dtype == DType::f32 ? 24 : is_bf16 ? 16 : 8;
    case Isa::avx2:
      return 20;
    case Isa::avx512:
      return 48;
    case Isa::avx512_bf16:
      return is_bf16 ? 16 : 48;
    case Isa::avx512_amx:
    case Isa::amx_emulated:
      return is_bf16 ? 8 : 48;
    case Isa::neon:
    case Isa::neon_bf16:
      return 16;
  }
  return 16;
}

}  // namespace

bool plan_decode(const SdpaProblem& problem, Isa isa, Plan& plan) {
  if (problem.kernel.empty() && rows_per_kv_head(problem) > most_rows(problem.dtype, isa))
    return false;
  const int span_len =
      decode_span_len(static_cast<int>(dtype_size(problem.dtype)),
                      static_cast<int>(problem.head_dim), static_cast<int>(problem.value_dim));
  const SdpaArgs args = sdpa_args(problem, static_cast<std::uint32_t>(span_len));
  PlanStep& step = plan.steps.emplace_back();
  step.kernel = fast_kernel_name(Family::decode, problem.dtype, isa);
  step.threadgroups = {std::max<std::uint32_t>(1, args.n_spans),
                       static_cast<std::uint32_t>(problem.n_kv_heads),
                       static_cast<std::uint32_t>(problem.batch)};
  bind_sdpa_operands(problem, step);
  bind_sdpa_args(problem, args, step);
  if (args.n_spans > 1) {
    bind_states(problem, args, static_cast<std::uint64_t>(problem.batch * problem.n_kv_heads),
                plan);
  }
  step.flops = 2.0 * visible_pairs(problem) * static_cast<double>(problem.n_heads) *
               static_cast<double>(problem.head_dim + problem.value_dim);
  plan.span_len = span_len;
  return true;
}

}  // namespace metal_sdpa::cpu
