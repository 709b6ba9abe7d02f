// The plan of sdpa_prefill: one step, whose work items are some rows of a KV head and a part of its
// keys.
#include <algorithm>
#include <utility>
#include <vector>

#include "core/plan_args.h"
#include "cpu/fast/families.h"
#include "cpu/fast/sdpa_prefill.h"
#include "cpu/fast/work_list.h"

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

// What packing costs: a key as much as its products with so many rows, and the other way round.
constexpr double kRowsToPack = 16;
constexpr double kKeysToPack = 16;
// Of the whole work, in units of a sequence that hardly counts.
constexpr double kMostHeads = 1 << 24;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// How one KV head's work is cut. Never changes bits.
struct Cut {
  std::int64_t sets = 1;   ///< of rows
  std::int64_t parts = 1;  ///< of the spans
};

/// What the cut of a sequence reads of the batch.
struct Share {
  std::int64_t spans = 0;  ///< of the sequence
  std::int64_t heads = 1;  ///< KV heads, if all the work were in heads like those of the sequence
};

/// Sets of rows that suit the caches: as few as leave plenty of items.
std::int64_t sets_of_rows(const SdpaProblem& problem, std::int64_t rows, std::int64_t heads,
                          int threads) {
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
Cut cut_work(const SdpaProblem& problem, std::int64_t rows, const Share& share, bool may_share,
             int threads) {
  Cut cut;
  cut.sets = sets_of_rows(problem, rows, share.heads, threads);
  if (threads == 1) return cut;
  if (share.spans > 1 && may_share) {
    // A part is as long as makes so many of all sequences together.
    const std::int64_t work = share.spans * share.heads * cut.sets;
    const std::int64_t part =
        std::min(ceil_div(work, kItemsOfSpansPerThread * threads), share.spans);
    cut.parts = ceil_div(share.spans, part);
  }
  cut_rows(rows, share.heads, kItemsPerThread * threads, kFewRows, cut);
  cut_rows(rows, share.heads, threads, kFewestRows, cut);
  return cut;
}

/// What an uncut KV head of sequence b costs, in products of a row and a key.
double head_cost(const SdpaProblem& problem, std::int64_t b) {
  const auto group = static_cast<double>(problem.n_heads / problem.n_kv_heads);
  return group * visible_pairs(problem, b) +
         kRowsToPack * static_cast<double>(keys_in_reach(problem, b)) +
         kKeysToPack * static_cast<double>(rows_to_write(problem, b));
}

/// Puts a cut of `sets` and `parts` into `work`, whose cost is that of a KV head. No set and no
/// part is empty.
void set_cut(const Cut& cut, SequenceWork& work) {
  const std::int64_t spans = std::max<std::int64_t>(work.spans, 1);
  work.set_rows = ceil_div(work.rows, cut.sets);
  work.n_sets = ceil_div(work.rows, work.set_rows);
  work.part_spans = ceil_div(spans, cut.parts);
  work.n_parts = ceil_div(spans, work.part_spans);
  work.has_states = work.n_parts > 1;
  work.item_cost /= static_cast<double>(work.items_of_head());
}

/// Each sequence is cut as its share of the whole work asks for.
std::vector<SequenceWork> cut_sequences(const SdpaProblem& problem, const BatchPart& part,
                                        std::int64_t span_len, bool may_share, int threads) {
  std::vector<SequenceWork> works;
  double total = 0;
  for_each_sequence(problem, part, [&](std::int64_t b) {
    SequenceWork& work = works.emplace_back();
    work.sequence = b;
    work.rows = rows_to_write(problem, b);
    work.spans = visible_spans(problem, b, span_len);
    work.item_cost = head_cost(problem, b);
    total += work.item_cost * static_cast<double>(problem.n_kv_heads);
  });
  for (SequenceWork& work : works) {
    const double heads = std::min(total / work.item_cost, kMostHeads);
    const Share share{work.spans, static_cast<std::int64_t>(heads)};
    set_cut(cut_work(problem, work.rows, share, may_share, threads), work);
  }
  return works;
}

std::int64_t states_of(const std::vector<SequenceWork>& works) {
  std::int64_t states = 0;
  for (const SequenceWork& work : works) states += work.states();
  return states;
}

bool fits(const SdpaProblem& problem, std::int64_t states) {
  return state_bytes(problem, static_cast<double>(states)) <= kMostStateBytes;
}

/// How the problem is cut: into the step's grid or its work list.
struct Division {
  std::int64_t longest = 0;  ///< spans of one sequence
  std::int64_t states = 0;   ///< of one KV head of all sequences, that are left in memory
  std::int64_t head_counters = 1;
  std::int64_t set_rows = 1;  ///< of every sequence, where there is no list
};

Division divide_unevenly(const SdpaProblem& problem, const BatchPart& part, std::int64_t span_len,
                         int threads, PlanStep& step) {
  std::vector<SequenceWork> works = cut_sequences(problem, part, span_len, true, threads);
  if (!fits(problem, states_of(works))) {
    works = cut_sequences(problem, part, span_len, false, threads);
  }
  Division division;
  for (const SequenceWork& work : works) division.longest = std::max(division.longest, work.spans);
  division.states = states_of(works);
  division.head_counters = most_sets(works);
  bind_work(problem, std::move(works), threads, step);
  return division;
}

Division divide_evenly(const SdpaProblem& problem, std::int64_t span_len, int threads,
                       PlanStep& step) {
  SequenceWork work;
  work.spans = visible_spans(problem, 0, span_len);
  work.rows = rows_to_write(problem, 0);
  const Share share{work.spans, problem.batch * problem.n_kv_heads};
  const bool may_share = fits(problem, work.spans * work.rows * problem.batch);
  set_cut(cut_work(problem, work.rows, share, may_share, threads), work);
  step.threadgroups = {static_cast<std::uint32_t>(work.items_of_head()),
                       static_cast<std::uint32_t>(problem.n_kv_heads),
                       static_cast<std::uint32_t>(problem.batch)};
  return {work.spans, work.states() * problem.batch, work.n_sets, work.set_rows};
}

}  // namespace

std::int64_t prefill_span_len(const SdpaProblem& problem, std::int64_t rows) {
  const int block_len =
      prefill_block_len(static_cast<int>(problem.head_dim), static_cast<int>(problem.value_dim));
  return prefill_span_len(block_len, rows);
}

void plan_prefill(const SdpaProblem& problem, const BatchPart& part, const PlanTarget& target,
                  Plan& plan) {
  const std::int64_t span_len = prefill_span_len(problem, part.rows_in_use);
  SdpaArgs args = sdpa_args(problem, static_cast<std::uint32_t>(span_len));
  PlanStep& step = plan.steps.emplace_back();
  step.kernel = fast_kernel_name(Family::prefill, problem.dtype, target.isa);
  const bool is_even = part.is_whole && !is_uneven(problem);
  const Division division = is_even
                                ? divide_evenly(problem, span_len, target.threads, step)
                                : divide_unevenly(problem, part, span_len, target.threads, step);
  args.n_spans = static_cast<std::uint32_t>(division.longest);
  args.group_split = static_cast<std::uint32_t>(division.set_rows);
  bind_sdpa_operands(problem, step);
  bind_sdpa_args(problem, args, step);
  if (division.states > 0) bind_states(problem, division.states, division.head_counters, plan);
  step.flops = part_flops(problem, part);
  plan.span_len = std::max(plan.span_len, span_len);
}

}  // namespace metal_sdpa::cpu
