// The tile kernels: spans, work division, cuts, merge. The rules are those of shaders/README.md.
#include "metal/plan_tiles.h"

#include <algorithm>
#include <string>
#include <utility>

#include "core/plan_args.h"
#include "core/text.h"
#include "metal/work_estimate.h"
#include "shaders/sdpa_spans.h"
#include "shaders/sdpa_tiles.h"

namespace metal_sdpa {
namespace {

constexpr DTypeNames kMergeKernels{"sdpa_merge", "sdpa_merge_f16", "sdpa_merge_bf16"};
/// Head dims that the tile kernels are made for, in order.
constexpr int kHeadDims[] = {32, 64, 96, 128, 192, 256, 384, 512, 576};
/// Beyond so many queries a row tile finds enough keys in one span to keep the GPU busy.
constexpr std::int64_t kMaxSpannedSeqLen = 64;

/// What the kernels are sure to reach on the smallest GPU (7-core M1: 68 GB/s, 2.3 TFLOP/s f32),
/// used only to cut dispatches. Decode without grouped queries does half an operation a byte of
/// f32; prefill is bound by arithmetic.
constexpr double kDecodeFlopsPerSecond = 2e10;
constexpr double kPrefillFlopsPerSecond = 2e11;

/// Everything about a tile kernel that follows from the problem's dtype, head dim and kind.
struct TileShape {
  bool prefill;
  int element_bytes;
  int dim;  ///< the kernel's head dim, at least the problem's
  int teams;
  int row_teams;  ///< those with rows of their own
  int rows;       ///< packed rows of one team

  TileShape(const SdpaProblem& problem, bool is_prefill)
      : prefill(is_prefill),
        element_bytes(static_cast<int>(dtype_size(problem.dtype))),
        dim(sdpa_tile_head_dim(static_cast<int>(problem.head_dim))),
        teams(sdpa_tile_teams(prefill, element_bytes, dim)),
        row_teams(sdpa_tile_row_teams(prefill, element_bytes, dim,
                                      problem.seq_len * problem.n_heads / problem.n_kv_heads)),
        rows(sdpa_tile_rows(prefill, element_bytes, dim)) {}

  int threads() const { return 32 * sdpa_tile_simdgroups(prefill, element_bytes, dim); }
  /// A kernel that declares threadgroup memory is to be given some, needed or not.
  std::uint32_t threadgroup_bytes() const {
    const int needed = sdpa_tile_threadgroup_bytes(prefill, element_bytes, dim, row_teams);
    return static_cast<std::uint32_t>(std::max(needed, 16));
  }
};

/// How the keys of the batch are cut.
struct Spans {
  std::uint32_t span_len = 1;
  std::uint32_t n_spans = 1;
  std::int64_t keys = 1;  ///< of a span of the longest sequence
};

std::uint32_t ceil_div(std::int64_t value, std::int64_t divisor) {
  return static_cast<std::uint32_t>((value + divisor - 1) / divisor);
}

Spans spans_of(const SdpaProblem& problem, const TileShape& shape) {
  Spans spans;
  const std::int64_t longest = longest_kv_len(problem);
  const bool one_span = shape.prefill && problem.seq_len > kMaxSpannedSeqLen;
  if (one_span) {
    spans.keys = std::max<std::int64_t>(longest, 1);
    spans.span_len = static_cast<std::uint32_t>(spans.keys);
    return spans;
  }
  spans.span_len =
      sdpa_span_len(shape.prefill, shape.element_bytes, static_cast<int>(problem.head_dim));
  const bool grouped = problem.n_heads > problem.n_kv_heads;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const std::int64_t kv_len = problem.sequence_kv_len(b);
    const std::int64_t keys = sdpa_span_keys(spans.span_len, kv_len, grouped);
    spans.keys = std::max(spans.keys, keys);
    spans.n_spans =
        std::max(spans.n_spans, static_cast<std::uint32_t>(sdpa_span_count(kv_len, keys)));
    if (!problem.per_sequence()) break;  // all sequences are as long
  }
  return spans;
}

/// The kernel's name; the table is made once, since a plan keeps the pointer.
const char* tile_kernel(const SdpaProblem& problem, const TileShape& shape) {
  static const auto* const names = [] {
    auto* table = new std::vector<std::string>;
    for (const char* family : {"sdpa_decode_", "sdpa_prefill_"}) {
      for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
        for (const int dim : kHeadDims)
          table->push_back(text_of(family, dtype_name(dtype), "_d", dim));
      }
    }
    return table;
  }();
  const std::size_t family = shape.prefill ? 1 : 0;
  const auto dtype = static_cast<std::size_t>(problem.dtype);  // f32, f16, bf16 come first
  const auto dim = static_cast<std::size_t>(
      std::find(std::begin(kHeadDims), std::end(kHeadDims), shape.dim) - std::begin(kHeadDims));
  return (*names)[(family * 3 + dtype) * std::size(kHeadDims) + dim].c_str();
}

/// Whether rows of a tensor start on 16 bytes where the tensor does.
bool rows_aligned(const TensorLayout& layout, const SdpaProblem& problem, std::int64_t heads,
                  std::int64_t rows) {
  const auto aligned = [&](std::int64_t elements) {
    return elements * static_cast<std::int64_t>(dtype_size(problem.dtype)) % 16 == 0;
  };
  return aligned(layout.offset) && (problem.batch == 1 || aligned(layout.batch_stride)) &&
         (heads == 1 || aligned(layout.head_stride)) && (rows == 1 || aligned(layout.row_stride));
}

bool rows_aligned(const SdpaProblem& problem) {
  return rows_aligned(problem.q, problem, problem.n_heads, problem.seq_len) &&
         rows_aligned(problem.k, problem, problem.n_kv_heads, problem.kv_capacity) &&
         rows_aligned(problem.v, problem, problem.n_kv_heads, problem.kv_capacity);
}

PlanStep tile_step(const SdpaProblem& problem, const TileShape& shape, const Spans& spans,
                   const WorkBox& box) {
  const std::int64_t group = problem.n_heads / problem.n_kv_heads;
  const std::int64_t packed_rows = (box.row_end - box.row_begin) * group;
  SdpaArgs args = sdpa_args(problem, spans.span_len);
  put_work(box, args);
  args.n_spans = spans.n_spans;
  args.group_split = static_cast<std::uint32_t>(shape.row_teams);
  const std::uint32_t row_blocks = ceil_div(packed_rows, shape.rows * shape.row_teams);

  PlanStep step;
  step.kernel = tile_kernel(problem, shape);
  step.threadgroups = {static_cast<std::uint32_t>(box.batch_end - box.batch_begin),
                       static_cast<std::uint32_t>((box.head_end - box.head_begin) / group),
                       row_blocks * spans.n_spans};
  step.threadgroup_size = {static_cast<std::uint32_t>(shape.threads()), 1, 1};
  step.threadgroup_memory.push_back({0, shape.threadgroup_bytes()});
  if (problem.head_dim < shape.dim) step.constants.push_back({SDPA_CONSTANT_PADDED, true});
  if (shape.row_teams < shape.teams) step.constants.push_back({SDPA_CONSTANT_SHARED, true});
  if (rows_aligned(problem)) step.aligned_constant = SDPA_CONSTANT_ALIGNED;
  step.flops = work_flops(problem, box);
  bind_sdpa_operands(problem, step);
  bind_sdpa_args(problem, args, step);
  return step;
}

/// Floats of the partial numerators and of the partial maxima and sums.
std::uint64_t partial_rows(const SdpaProblem& problem, const Spans& spans) {
  return static_cast<std::uint64_t>(problem.batch * problem.n_heads * problem.seq_len) *
         spans.n_spans;
}

void bind_partials(PlanStep& step) {
  step.bindings.push_back({SDPA_BUFFER_PARTIAL_O, PlanOperand::scratch0});
  step.bindings.push_back({SDPA_BUFFER_PARTIAL_MS, PlanOperand::scratch1});
}

PlanStep merge_step(const SdpaProblem& problem, const Spans& spans, const WorkBox& box) {
  SdpaArgs args = sdpa_args(problem, spans.span_len);
  put_work(box, args);
  args.n_spans = spans.n_spans;
  PlanStep step;
  step.kernel = kMergeKernels.of(problem.dtype);
  step.threadgroups = {static_cast<std::uint32_t>(box.batch_end - box.batch_begin),
                       static_cast<std::uint32_t>(box.head_end - box.head_begin),
                       static_cast<std::uint32_t>(box.row_end - box.row_begin)};
  step.flops = 2.0 * static_cast<double>(step.threadgroups.count()) * spans.n_spans *
               static_cast<double>(problem.value_dim);
  step.threadgroups.z *= ceil_div(problem.value_dim, SDPA_MERGE_COLUMNS);
  const int simdgroups = sdpa_merge_simdgroups(static_cast<int>(spans.n_spans));
  step.threadgroup_size = {32 * static_cast<std::uint32_t>(simdgroups), 1, 1};
  step.threadgroup_memory.push_back({0, SDPA_MERGE_BYTES});
  bind_sdpa_outputs(problem, step);
  bind_partials(step);
  bind_sdpa_args(problem, args, step);
  return step;
}

Plan plan_one_span(const SdpaProblem& problem, const TileShape& shape, const Spans& spans,
                   const std::vector<WorkBox>& boxes) {
  Plan plan;
  for (const WorkBox& box : boxes) {
    plan.steps.push_back(tile_step(problem, shape, spans, box));
  }
  return plan;
}

Plan plan_with_merge(const SdpaProblem& problem, const TileShape& shape, const Spans& spans,
                     const std::vector<WorkBox>& boxes) {
  Plan plan;
  const std::uint64_t rows = partial_rows(problem, spans);
  const std::uint64_t numerator_bytes =
      rows * static_cast<std::uint64_t>(problem.value_dim) * sizeof(float);
  const std::uint64_t max_sum_bytes = rows * 2 * sizeof(float);
  plan.scratch_bytes[0] = numerator_bytes;
  plan.scratch_bytes[1] = max_sum_bytes;
  SdpaProblem states = problem;
  states.return_lse = false;  // the merge writes it
  for (const WorkBox& box : boxes) {
    PlanStep step = tile_step(states, shape, spans, box);
    step.constants.push_back({SDPA_CONSTANT_PARTIAL, true});
    bind_partials(step);
    step.writes = {{PlanOperand::scratch0, 0, numerator_bytes},
                   {PlanOperand::scratch1, 0, max_sum_bytes}};
    plan.steps.push_back(std::move(step));
  }
  for (const WorkBox& box : boxes) {
    PlanStep step = merge_step(problem, spans, box);
    step.reads = {{PlanOperand::scratch0, 0, numerator_bytes},
                  {PlanOperand::scratch1, 0, max_sum_bytes}};
    plan.steps.push_back(std::move(step));
  }
  return plan;
}

}  // namespace

bool tiles_take(const SdpaProblem& problem) {
  return problem.head_dim % 8 == 0 && problem.head_dim == problem.value_dim &&
         problem.head_dim <= SDPA_TILE_MAX_HEAD_DIM;
}

Plan plan_tiles(const SdpaProblem& problem, const MetalFacts& facts, bool prefill) {
  const TileShape shape(problem, prefill);
  const Spans spans = spans_of(problem, shape);
  const std::int64_t group = problem.n_heads / problem.n_kv_heads;
  const double rate = prefill ? kPrefillFlopsPerSecond : kDecodeFlopsPerSecond;
  // Rows of a cut fill whole threadgroups, as far as G divides them.
  const WorkUnit unit{std::max<std::int64_t>(shape.rows * shape.teams / group, 1), group};
  const std::vector<WorkBox> boxes = cut_work(problem, unit, rate * facts.max_dispatch_seconds);
  Plan plan = spans.n_spans == 1 ? plan_one_span(problem, shape, spans, boxes)
                                 : plan_with_merge(problem, shape, spans, boxes);
  plan.span_len = spans.keys;
  return plan;
}

}  // namespace metal_sdpa
