// The plan of sdpa_prefill: one step, whose work items are some rows of a KV head and a part of its
// keys.
#include <algorithm>

#include "core/plan_args.h"
#include "cpu/fast/families.h"
#include "cpu/fast/sdpa_prefill.h"

namespace metal_sdpa::cpu {
namespace {

// As many items a thread, so that threads end together although items differ; spans are shared out
// for fewer, since their states cost memory.
constexpr std::int64_t kItemsPerThread = 8;
constexpr std::int64_t kItemsOfSpansPerThread = 4;
// Rows below which an item packs its keys for too few; where threads have no work at all, fewer do.
constexpr std::int64_t kFewRows = 96;
constexpr std::int64_t kFewestRows = 24;
// Most memory for the states of spans whose items are different threads'.
constexpr std::uint64_t kMostStateBytes = std::uint64_t{128} << 20;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// How one KV head's work is cut. Never changes bits.
struct Cut {
  std::int64_t items = 1;  ///< sets of rows
  std::int64_t parts = 1;  ///< sets of spans
};

/// More sets of rows until the problem has `wanted` items, as long as each keeps so many rows.
void cut_rows(std::int64_t rows, std::int64_t heads, std::int64_t wanted, std::int64_t least_rows,
              Cut& cut) {
  const std::int64_t items = std::min(ceil_div(wanted, heads * cut.parts), rows / least_rows);
  cut.items = std::max(cut.items, items);
}

/// Spans are shared out first, since then no key is packed twice.
Cut cut_work(const SdpaProblem& problem, const SdpaArgs& args, int threads) {
  const std::int64_t rows = rows_per_kv_head(problem);
  const std::int64_t heads = std::max<std::int64_t>(problem.batch * problem.n_kv_heads, 1);
  Cut cut;
  cut.items = ceil_div(rows, kPrefillItemRows);
  if (threads == 1) return cut;
  const std::int64_t n_spans = args.n_spans;
  if (n_spans > 1 && state_bytes(problem, args) <= kMostStateBytes) {
    const std::int64_t wanted = ceil_div(kItemsOfSpansPerThread * threads, heads * cut.items);
    const std::int64_t part_spans = ceil_div(n_spans, std::min(wanted, n_spans));
    cut.parts = ceil_div(n_spans, part_spans);  // none of them empty
  }
  cut_rows(rows, heads, kItemsPerThread * threads, kFewRows, cut);
  cut_rows(rows, heads, threads, kFewestRows, cut);
  return cut;
}

}  // namespace

bool plan_prefill(const SdpaProblem& problem, const PlanTarget& target, Plan& plan) {
  const int block_len =
      prefill_block_len(static_cast<int>(problem.head_dim), static_cast<int>(problem.value_dim));
  const int span_len = prefill_span_len(block_len, rows_per_kv_head(problem));
  SdpaArgs args = sdpa_args(problem, static_cast<std::uint32_t>(span_len));
  const Cut cut = cut_work(problem, args, target.threads);
  const std::int64_t rows = ceil_div(rows_per_kv_head(problem), cut.items);
  const std::int64_t items = ceil_div(rows_per_kv_head(problem), rows);
  args.group_split = static_cast<std::uint32_t>(rows);
  PlanStep& step = plan.steps.emplace_back();
  step.kernel = fast_kernel_name(Family::prefill, problem.dtype, target.isa);
  step.threadgroups = {static_cast<std::uint32_t>(items * cut.parts),
                       static_cast<std::uint32_t>(problem.n_kv_heads),
                       static_cast<std::uint32_t>(problem.batch)};
  bind_sdpa_operands(problem, step);
  bind_sdpa_args(problem, args, step);
  if (cut.parts > 1) {
    bind_states(problem, args,
                static_cast<std::uint64_t>(problem.batch * problem.n_kv_heads * items), plan);
  }
  step.flops = 2.0 * visible_pairs(problem) * static_cast<double>(problem.n_heads) *
               static_cast<double>(problem.head_dim + problem.value_dim);
  plan.span_len = span_len;
  return true;
}

}  // namespace metal_sdpa::cpu
