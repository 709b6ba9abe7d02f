// The plan of sdpa_decode: one step, one work item a span of each KV head.
#include <algorithm>

#include "core/plan_args.h"
#include "cpu/fast/families.h"
#include "cpu/fast/sdpa_decode.h"

namespace metal_sdpa::cpu {
namespace {

/// Query rows under one KV head up to which measurement favours sdpa_decode: from there on
/// sdpa_prefill multiplies faster, which packs K and V once for all rows; sooner where products are
/// of bf16 pairs, which sdpa_decode makes of K alone. The baseline is slow at widening.
std::int64_t most_rows(DType dtype, Isa isa) {
  if (isa == Isa::baseline && dtype != DType::f32) return 8;
  const bool has_pairs = dtype == DType::bf16 && isa == Isa::avx512_bf16;
  const bool is_wide = isa == Isa::avx512 || isa == Isa::avx512_bf16;
  return is_wide && !has_pairs ? 48 : 16;
}

/// sdpa_prefill gives so many rows of a KV head to one thread, which a large group (few KV heads)
/// cannot afford; least of all with one query, where keys are many for each row.
bool suits_decode(const SdpaProblem& problem, Isa isa) {
  const std::int64_t group = problem.n_heads / problem.n_kv_heads;
  std::int64_t most = most_rows(problem.dtype, isa);
  if (group >= 8) most = std::max<std::int64_t>(most, problem.seq_len == 1 ? 48 : 16);
  return rows_per_kv_head(problem) <= most;
}

}  // namespace

bool plan_decode(const SdpaProblem& problem, Isa isa, Plan& plan) {
  if (problem.kernel.empty() && !suits_decode(problem, isa)) return false;
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
