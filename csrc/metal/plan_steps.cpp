// Cuts, steps, work lists and merges, the same for every kernel.
#include "metal/plan_steps.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "core/plan_args.h"

namespace metal_sdpa {
namespace {

constexpr DTypeNames kMergeKernels{"sdpa_merge", "sdpa_merge_f16", "sdpa_merge_bf16"};

std::uint32_t ceil_div(std::int64_t value, std::int64_t divisor) {
  return static_cast<std::uint32_t>((value + divisor - 1) / divisor);
}

/// A span's keys as the kernels take them: what does not fit holds every key there can be.
std::uint32_t span_len_of(const KeySpans& spans) {
  constexpr std::int64_t kMost = std::numeric_limits<std::uint32_t>::max();
  return static_cast<std::uint32_t>(std::min(spans.keys, kMost));
}

/// Of the spans that rows of a box see, those that hold its keys.
SpanRange spans_of_box(SpanRange seen, std::int64_t span_keys, const WorkBox& box) {
  return {std::max(seen.begin, box.key_begin / span_keys),
          std::min(seen.end, (box.key_end - 1) / span_keys + 1)};
}

/// The sequences of a box of which its rows see one span, or those of which they see several, which
/// are merged, and how a kernel goes through them.
class BoxPlan {
 public:
  BoxPlan(const SdpaProblem& problem, const KernelFacts& kernel, const WorkBox& box, bool is_merged)
      : problem_(problem),
        kernel_(kernel),
        box_(box),
        is_merged_(is_merged),
        own_(spans_of(kernel.spans, problem.sequence_kv_len(box.sequence(box.batch_begin)))),
        seen_(seen_spans(problem, kernel.spans, box, box.sequence(box.batch_begin))) {
    if (problem.per_sequence()) {
      items_ = sequence_items();
      for (const SdpaWorkItem& item : items_) count(item.n_spans, 1);
    } else if ((seen_.count() > 1) == is_merged) {
      count(seen_.count(), box.sequences());
    }
  }

  bool is_empty() const { return n_spans_ == 0; }

  /// Rows and spans whose states are left.
  std::uint64_t states() const {
    return static_cast<std::uint64_t>(n_spans_ * box_.heads() * box_.rows());
  }

  PlanStep kernel_step() const {
    PlanStep step;
    step.kernel = kernel_.kernel;
    step.constants.assign(kernel_.constants.begin(), kernel_.constants.size());
    step.aligned_constant = kernel_.aligned_constant;
    const std::uint32_t blocks = ceil_div(box_.rows() * kernel_.group, kernel_.block);
    const auto heads = static_cast<std::uint32_t>(box_.heads() / kernel_.group);
    if (problem_.per_sequence()) {
      const std::vector<SdpaWorkItem> items = span_items();
      step.threadgroups = {heads, static_cast<std::uint32_t>(items.size()), blocks};
      bind_items(items, step);
    } else {
      step.threadgroups = {static_cast<std::uint32_t>(box_.sequences()), heads,
                           blocks * static_cast<std::uint32_t>(box_spans().count())};
    }
    step.threadgroup_size = {kernel_.threads, 1, 1};
    if (kernel_.threadgroup_bytes > 0) {
      step.threadgroup_memory.push_back({0, kernel_.threadgroup_bytes});
    }
    step.flops = flops();
    bind_sdpa_inputs(problem_, step);
    if (is_windowed() && !has_band_begin(problem_)) {
      step.constants.push_back({SDPA_CONSTANT_WINDOW, true});
    }
    if (is_merged_) {
      step.constants.push_back({SDPA_CONSTANT_PARTIAL, true});
      bind_states(step, step.writes);
    } else {
      bind_sdpa_outputs(problem_, step);
    }
    bind_args(step);
    return step;
  }

  PlanStep merge_step() const {
    PlanStep step;
    step.kernel = kMergeKernels.of(problem_.out_dtype());
    const auto heads = static_cast<std::uint32_t>(box_.heads());
    const auto sequences = static_cast<std::uint32_t>(box_.sequences());
    const std::uint32_t rows =
        static_cast<std::uint32_t>(box_.rows()) * ceil_div(problem_.value_dim, SDPA_MERGE_COLUMNS);
    if (problem_.per_sequence()) {
      step.threadgroups = {heads, static_cast<std::uint32_t>(items_.size()), rows};
      bind_items(items_, step);
    } else {
      step.threadgroups = {sequences, heads, rows};
    }
    const int simdgroups = sdpa_merge_simdgroups(static_cast<int>(most_spans_));
    step.threadgroup_size = {32 * static_cast<std::uint32_t>(simdgroups), 1, 1};
    step.threadgroup_memory.push_back({0, SDPA_MERGE_BYTES});
    step.flops = 2.0 * static_cast<double>(states()) * static_cast<double>(problem_.value_dim);
    bind_sdpa_outputs(problem_, step);
    if (is_windowed()) step.constants.push_back({SDPA_CONSTANT_WINDOW, true});
    bind_states(step, step.reads);
    bind_args(step);
    return step;
  }

 private:
  SpanRange box_spans() const { return spans_of_box(seen_, own_.keys, box_); }

  /// Keys that stand more than a position apart take a division a row, for which kernels have no
  /// room beside the usual.
  bool is_windowed() const { return has_band_begin(problem_) || problem_.key_stride != 1; }

  void count(std::int64_t spans, std::int64_t sequences) {
    n_spans_ += spans * sequences;
    most_spans_ = std::max(most_spans_, spans);
  }

  double flops() const {
    if (!problem_.per_sequence()) return work_flops(problem_, box_);
    double flops = 0;
    for (const SdpaWorkItem& item : items_) {
      WorkBox one = box_;
      one.listed = nullptr;
      one.batch_begin = item.batch_index;
      one.batch_end = one.batch_begin + 1;
      flops += work_flops(problem_, one);
    }
    return flops;
  }

  void bind_args(PlanStep& step) const {
    SdpaArgs args = sdpa_args(problem_, span_len_of(own_));
    const SpanRange range = box_spans();
    args.n_spans = static_cast<sdpa_u32>(seen_.count());
    args.seen_begin = static_cast<sdpa_u32>(seen_.begin);
    args.group_split = kernel_.group_split;
    args.batch_begin = static_cast<sdpa_u32>(box_.batch_begin);
    args.head_begin = static_cast<sdpa_u32>(box_.head_begin);
    args.head_end = static_cast<sdpa_u32>(box_.head_end);
    args.row_begin = static_cast<sdpa_u32>(box_.row_begin);
    args.row_end = static_cast<sdpa_u32>(box_.row_end);
    args.span_begin = static_cast<sdpa_u32>(range.begin);
    args.span_end = static_cast<sdpa_u32>(range.end);
    step.args.index = SDPA_BUFFER_ARGS;
    step.args.bytes.assign(reinterpret_cast<const std::byte*>(&args), sizeof(args));
  }

  template <typename Ranges>
  void bind_states(PlanStep& step, Ranges& ranges) const {
    const auto width = static_cast<std::uint64_t>(problem_.value_dim);
    step.bindings.push_back({SDPA_BUFFER_PARTIAL_O, PlanOperand::scratch0});
    step.bindings.push_back({SDPA_BUFFER_PARTIAL_MS, PlanOperand::scratch1});
    ranges.push_back({PlanOperand::scratch0, 0, states() * width * sizeof(float)});
    ranges.push_back({PlanOperand::scratch1, 0, states() * 2 * sizeof(float)});
  }

  static void bind_items(const std::vector<SdpaWorkItem>& items, PlanStep& step) {
    auto bytes = std::make_shared<std::vector<std::byte>>(items.size() * sizeof(SdpaWorkItem));
    std::memcpy(bytes->data(), items.data(), bytes->size());
    step.sequences = {SDPA_BUFFER_WORK, std::move(bytes)};
    step.constants.push_back({SDPA_CONSTANT_WORK, true});
  }

  /// An item for each sequence with rows in the box, the one with the most keys first.
  std::vector<SdpaWorkItem> sequence_items() const {
    std::vector<SdpaWorkItem> items;
    for (std::int64_t i = box_.batch_begin; i < box_.batch_end; ++i) {
      const std::int64_t b = box_.sequence(i);
      const SdpaSequence sequence = sequence_of(problem_, b);
      if (problem_.has_packed_queries() && sequence.query_len <= box_.row_begin) continue;
      const SpanRange seen = seen_spans(problem_, kernel_.spans, box_, b);
      if ((seen.count() > 1) != is_merged_) continue;
      const std::uint32_t span_len = span_len_of(spans_of(kernel_.spans, sequence.kv_len));
      items.push_back({sequence, static_cast<sdpa_u32>(b), 0, span_len,
                       static_cast<sdpa_u32>(seen.count()), 0, static_cast<sdpa_u32>(seen.begin)});
    }
    std::stable_sort(items.begin(), items.end(),
                     [this](const auto& a, const auto& b) { return keys_of(a) > keys_of(b); });
    sdpa_u32 first_span = 0;
    for (SdpaWorkItem& item : items) {
      item.first_span = first_span;
      first_span += item.n_spans;
    }
    return items;
  }

  /// Keys that any row of the box sees of the item's sequence.
  std::int64_t keys_of(const SdpaWorkItem& item) const {
    const SdpaBand band =
        sdpa_band_of_rows(item.sequence, window_of(problem_), box_.row_begin, box_.row_end - 1);
    return band.end - band.begin;
  }

  /// An item for each span of each sequence that the box has, in the order of sequences.
  std::vector<SdpaWorkItem> span_items() const {
    std::vector<SdpaWorkItem> items;
    items.reserve(static_cast<std::size_t>(n_spans_));
    for (SdpaWorkItem item : items_) {
      const SpanRange seen{item.seen_begin, item.seen_begin + item.n_spans};
      const SpanRange range = spans_of_box(seen, item.span_len, box_);
      for (std::int64_t span = range.begin; span < range.end; ++span) {
        item.span = static_cast<sdpa_u32>(span);
        items.push_back(item);
      }
    }
    return items;
  }

  const SdpaProblem& problem_;
  const KernelFacts& kernel_;
  const WorkBox& box_;
  const bool is_merged_;
  // Of the first sequence, and of all where they are alike.
  const KeySpans own_;
  const SpanRange seen_;
  std::vector<SdpaWorkItem> items_;  ///< one a sequence, where they are not alike
  std::int64_t n_spans_ = 0;
  std::int64_t most_spans_ = 1;
};

}  // namespace

std::int64_t max_spans(const SdpaProblem& problem, const WorkUnit& unit) {
  const std::int64_t row_bytes = (problem.value_dim + 2) * static_cast<std::int64_t>(sizeof(float));
  return std::max<std::int64_t>(SDPA_MAX_STATE_BYTES / (unit.rows * unit.heads * row_bytes), 1);
}

namespace {

void add_steps(const SdpaProblem& problem, const WorkBox& whole, const MetalFacts& facts,
               const KernelFacts& kernel, Plan& plan) {
  const auto fits = [&](const WorkBox& box) {
    return state_bytes(problem, kernel.spans, box) <= facts.max_state_bytes &&
           work_seconds(problem, kernel.spans, box, kernel.rate) <= facts.max_dispatch_seconds;
  };
  const std::vector<WorkBox> boxes = cut_work(problem, whole, kernel.spans, kernel.unit, fits);
  std::uint64_t states = 0;
  for (std::size_t i = 0; i < boxes.size(); ++i) {
    const BoxPlan merged(problem, kernel, boxes[i], true);
    const BoxPlan direct(problem, kernel, boxes[i], false);
    if (!merged.is_empty()) plan.steps.push_back(merged.kernel_step());
    if (!direct.is_empty()) plan.steps.push_back(direct.kernel_step());
    if (merged.is_empty()) continue;
    states = std::max(states, merged.states());
    const bool more_keys = i + 1 < boxes.size() && same_rows(boxes[i], boxes[i + 1]);
    if (!more_keys) plan.steps.push_back(merged.merge_step());
  }
  const std::uint64_t width = static_cast<std::uint64_t>(problem.value_dim) * sizeof(float);
  plan.scratch_bytes[0] = std::max(plan.scratch_bytes[0], states * width);
  plan.scratch_bytes[1] = std::max(plan.scratch_bytes[1], states * 2 * sizeof(float));
}

}  // namespace

Plan plan_steps(const SdpaProblem& problem, const MetalFacts& facts, const KernelFacts& kernel) {
  Plan plan;
  plan.span_len = spans_of(kernel.spans, longest_kv_len(problem)).keys;
  add_steps(problem, whole_work(problem), facts, kernel, plan);
  return plan;
}

void add_steps(const SdpaProblem& problem, const std::vector<std::int64_t>& sequences,
               const MetalFacts& facts, const KernelFacts& kernel, Plan& plan) {
  std::int64_t longest = 0;
  for (const std::int64_t b : sequences) longest = std::max(longest, problem.sequence_kv_len(b));
  plan.span_len = std::max(plan.span_len, spans_of(kernel.spans, longest).keys);
  add_steps(problem, whole_work(problem, sequences), facts, kernel, plan);
}

}  // namespace metal_sdpa
