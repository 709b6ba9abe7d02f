// The plan of sdpa_decode: one step, one work item a span of each KV head.
#include <algorithm>
#include <vector>

#include "core/plan_args.h"
#include "cpu/fast/families.h"
#include "cpu/fast/sdpa_decode.h"
#include "cpu/fast/work_list.h"

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

// What beginning and ending an item costs, in keys.
constexpr double kItemKeys = 16;

struct Spans {
  std::int64_t longest = 0;  ///< of one sequence
  std::int64_t states = 0;   ///< of one KV head of all sequences
};

/// An item a span, at least one a KV head.
SequenceWork work_of(const SdpaProblem& problem, std::int64_t b, std::int64_t span_len) {
  SequenceWork work;
  work.sequence = b;
  work.spans = visible_spans(problem, b, span_len);
  work.rows = rows_to_write(problem, b);
  work.set_rows = work.rows;
  work.n_parts = std::max<std::int64_t>(work.spans, 1);
  work.has_states = true;
  work.item_cost = kItemKeys + static_cast<double>(keys_in_reach(problem, b)) /
                                   static_cast<double>(work.n_parts);
  return work;
}

Spans bind_list(const SdpaProblem& problem, const BatchPart& part, std::int64_t span_len,
                int threads, PlanStep& step) {
  std::vector<SequenceWork> works;
  Spans spans;
  for_each_sequence(problem, part, [&](std::int64_t b) {
    const SequenceWork& work = works.emplace_back(work_of(problem, b, span_len));
    spans.longest = std::max(spans.longest, work.spans);
    spans.states += work.states();
  });
  bind_work(problem, std::move(works), threads, step);
  return spans;
}

/// Whether a grid would have empty items, or items of several threads that differ.
bool wants_list(const SdpaProblem& problem, const BatchPart& part, std::int64_t span_len,
                double flops, int threads) {
  if (!part.is_whole) return true;
  if (!is_uneven(problem)) return false;
  if (problem.has_packed_queries()) return true;
  if (threads > 1 && flops >= 2 * kFlopsPerThread) return true;
  for (std::int64_t b = 1; b < problem.batch; ++b) {
    if (visible_spans(problem, b, span_len) != visible_spans(problem, 0, span_len)) return true;
  }
  return false;
}

Spans set_grid(const SdpaProblem& problem, std::int64_t span_len, PlanStep& step) {
  const std::int64_t spans = visible_spans(problem, 0, span_len);
  step.threadgroups = {static_cast<std::uint32_t>(std::max<std::int64_t>(spans, 1)),
                       static_cast<std::uint32_t>(problem.n_kv_heads),
                       static_cast<std::uint32_t>(problem.batch)};
  return {spans, spans * problem.batch * rows_to_write(problem, 0)};
}

}  // namespace

bool decode_suits(const SdpaProblem& problem, const PlanTarget& target, std::int64_t rows) {
  return rows <= most_rows(problem.dtype, target.isa);
}

void plan_decode(const SdpaProblem& problem, const BatchPart& part, const PlanTarget& target,
                 Plan& plan) {
  const int span_len =
      decode_span_len(static_cast<int>(dtype_size(problem.dtype)),
                      static_cast<int>(problem.head_dim), static_cast<int>(problem.value_dim));
  SdpaArgs args = sdpa_args(problem, static_cast<std::uint32_t>(span_len));
  PlanStep& step = plan.steps.emplace_back();
  step.kernel = fast_kernel_name(Family::decode, problem.dtype, target.isa);
  step.flops = part_flops(problem, part);
  const Spans spans = wants_list(problem, part, span_len, step.flops, target.threads)
                          ? bind_list(problem, part, span_len, target.threads, step)
                          : set_grid(problem, span_len, step);
  args.n_spans = static_cast<std::uint32_t>(spans.longest);
  bind_sdpa_operands(problem, step);
  bind_sdpa_args(problem, args, step);
  if (spans.longest > 1) bind_states(problem, spans.states, 1, plan);
  plan.span_len = std::max<std::int64_t>(plan.span_len, span_len);
}

}  // namespace metal_sdpa::cpu
