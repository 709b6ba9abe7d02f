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
// With so many a thread each is small against the whole, even of a causal problem, whose items
// differ most.
constexpr std::int64_t kPlentyPerThread = 24;
// Rows below which an item packs its keys for too few; where threads have no work at all, fewer do.
constexpr std::int64_t kFewRows = 96;
constexpr std::int64_t kFewestRows = 24;
// Most memory for the states of spans whose items are different threads'.
constexpr double kMostStateBytes = 64 << 20;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// How one KV head's work is cut. Never changes bits.
struct Cut {
  std::int64_t sets = 1;   ///< of rows
  std::int64_t parts = 1;  ///< of the spans
};

/// Spans that any row of sequence b sees.
std::int64_t visible_spans(const SdpaProblem& problem, std::int64_t b, std::int64_t span_len) {
  std::int64_t keys = problem.sequence_kv_len(b);
  if (problem.causal) {
    const std::int64_t seen = problem.sequence_q_start(b) + problem.seq_len;
    keys = std::clamp<std::int64_t>(seen, 0, keys);
  }
  return ceil_div(keys, span_len);
}

struct SpanCount {
  std::int64_t longest = 0;  ///< of one sequence
  std::int64_t all = 0;      ///< of all sequences
};

SpanCount count_spans(const SdpaProblem& problem, std::int64_t span_len) {
  if (!problem.per_sequence()) {
    const std::int64_t spans = visible_spans(problem, 0, span_len);
    return {spans, spans * problem.batch};
  }
  SpanCount count;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const std::int64_t spans = visible_spans(problem, b, span_len);
    count.longest = std::max(count.longest, spans);
    count.all += spans;
  }
  return count;
}

/// Sets of rows that suit the caches: as few as leave plenty of items. Sequences count by their
/// spans, so that one long one among many short ones is still cut.
std::int64_t sets_of_rows(const SdpaProblem& problem, const SpanCount& spans, int threads) {
  const std::int64_t rows = rows_per_kv_head(problem);
  const std::int64_t heads = std::max<std::int64_t>(
      problem.n_kv_heads * spans.all / std::max<std::int64_t>(spans.longest, 1), 1);
  const int most = prefill_most_item_rows(static_cast<int>(problem.head_dim + problem.value_dim));
  const std::int64_t plenty = ceil_div(kPlentyPerThread * threads, heads);
  return std::clamp(plenty, ceil_div(rows, most), ceil_div(rows, kPrefillItemRows));
}

/// More sets of rows until the problem has `wanted` items, as long as each keeps so many rows.
void cut_rows(std::int64_t rows, std::int64_t heads, std::int64_t wanted, std::int64_t least_rows,
              Cut& cut) {
  const std::int64_t sets = std::min(ceil_div(wanted, heads * cut.parts), rows / least_rows);
  cut.sets = std::max(cut.sets, sets);
}

/// Spans are shared out first, since then no key is packed twice.
Cut cut_work(const SdpaProblem& problem, const SpanCount& spans, bool may_share, int threads) {
  const std::int64_t rows = rows_per_kv_head(problem);
  const std::int64_t heads = std::max<std::int64_t>(problem.batch * problem.n_kv_heads, 1);
  Cut cut;
  cut.sets = sets_of_rows(problem, spans, threads);
  if (threads == 1) return cut;
  if (spans.longest > 1 && may_share) {
    // A part is as long as makes so many of all sequences together.
    const std::int64_t work = spans.all * problem.n_kv_heads * cut.sets;
    const std::int64_t part =
        std::min(ceil_div(work, kItemsOfSpansPerThread * threads), spans.longest);
    cut.parts = ceil_div(spans.longest, part);
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
  const SpanCount spans = count_spans(problem, span_len);
  args.n_spans = static_cast<std::uint32_t>(spans.longest);
  const bool may_share = state_bytes(problem, args) <= kMostStateBytes;
  const Cut cut = cut_work(problem, spans, may_share, target.threads);
  const std::int64_t rows = ceil_div(rows_per_kv_head(problem), cut.sets);
  const std::int64_t sets = ceil_div(rows_per_kv_head(problem), rows);
  args.group_split = static_cast<std::uint32_t>(rows);
  PlanStep& step = plan.steps.emplace_back();
  step.kernel = fast_kernel_name(Family::prefill, problem.dtype, target.isa);
  step.threadgroups = {static_cast<std::uint32_t>(sets * cut.parts),
                       static_cast<std::uint32_t>(problem.n_kv_heads),
                       static_cast<std::uint32_t>(problem.batch)};
  bind_sdpa_operands(problem, step);
  bind_sdpa_args(problem, args, step);
  if (cut.parts > 1) {
    bind_states(problem, args,
                static_cast<std::uint64_t>(problem.batch * problem.n_kv_heads * sets), plan);
  }
  step.flops = 2.0 * visible_pairs(problem) * static_cast<double>(problem.n_heads) *
               static_cast<double>(problem.head_dim + problem.value_dim);
  plan.span_len = span_len;
  return true;
}

}  // namespace metal_sdpa::cpu
