// The plan of sdpa_prefill: one step, one work item for some rows of each KV head.
#include <bit>

#include "core/plan_args.h"
#include "cpu/fast/families.h"
#include "cpu/fast/sdpa_prefill.h"

namespace metal_sdpa::cpu {
namespace {

/// Items of one KV head are halved until the problem has so many, as long as each keeps so many
/// rows: threads without work cost more than packing the same keys again.
struct Cut {
  std::int64_t items;
  std::int64_t rows;
};
constexpr Cut kCuts[] = {{16, 96}, {2, 24}};

/// Rows of an item: all items of a KV head about the same. Never changes bits.
std::int64_t item_rows(const SdpaProblem& problem) {
  const std::int64_t rows = rows_per_kv_head(problem);
  const std::int64_t heads = problem.batch * problem.n_kv_heads;
  std::int64_t items = (rows + kPrefillItemRows - 1) / kPrefillItemRows;
  for (const Cut& cut : kCuts) {
    if (heads * items >= cut.items) continue;
    items = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(items)));
    while (heads * items < cut.items && rows >= 2 * items * cut.rows) items *= 2;
  }
  return (rows + items - 1) / items;
}

}  // namespace

bool plan_prefill(const SdpaProblem& problem, Isa isa, Plan& plan) {
  const int span_len = kPrefillSpanBlocks * prefill_block_len(static_cast<int>(problem.head_dim),
                                                              static_cast<int>(problem.value_dim));
  const std::int64_t rows = item_rows(problem);
  SdpaArgs args = sdpa_args(problem, static_cast<std::uint32_t>(span_len));
  args.group_split = static_cast<std::uint32_t>(rows);
  PlanStep& step = plan.steps.emplace_back();
  step.kernel = fast_kernel_name(Family::prefill, problem.dtype, isa);
  step.threadgroups = {static_cast<std::uint32_t>((rows_per_kv_head(problem) + rows - 1) / rows),
                       static_cast<std::uint32_t>(problem.n_kv_heads),
                       static_cast<std::uint32_t>(problem.batch)};
  bind_sdpa_operands(problem, step);
  bind_sdpa_args(problem, args, step);
  step.flops = 2.0 * visible_pairs(problem) * static_cast<double>(problem.n_heads) *
               static_cast<double>(problem.head_dim + problem.value_dim);
  plan.span_len = span_len;
  return true;
}

}  // namespace metal_sdpa::cpu
