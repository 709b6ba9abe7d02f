// What the tile kernels are like: their shapes, spans and names. The rules are those of
// shaders/README.md.
#include "metal/plan_tiles.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "core/operands.h"
#include "core/text.h"
#include "shaders/sdpa_tiles.h"

namespace metal_sdpa {
namespace {

/// Head dims that the tile kernels are made for, in order.
constexpr int kHeadDims[] = {32, 64, 96, 128, 192, 256, 384, 512, 576};

/// Everything about a tile kernel that follows from the problem's dtype, head dim and kind.
struct TileShape {
  bool prefill;
  int element_bytes;
  int dim;  ///< the kernel's head dim, at least the problem's
  int teams;
  int row_teams;  ///< those with rows of their own
  int rows;       ///< packed rows of one team

  TileShape(const SdpaProblem& problem, std::int64_t query_rows, bool is_prefill)
      : prefill(is_prefill),
        element_bytes(static_cast<int>(dtype_size(problem.dtype))),
        dim(sdpa_tile_head_dim(static_cast<int>(problem.head_dim))),
        teams(sdpa_tile_teams(prefill, element_bytes, dim)),
        row_teams(sdpa_tile_row_teams(prefill, element_bytes, dim,
                                      query_rows * problem.n_heads / problem.n_kv_heads)),
        rows(sdpa_tile_rows(prefill, element_bytes, dim)) {}

  /// Teams that go through the same rows' keys by turns, each with sums of its own.
  int sharing_teams() const {
    return sdpa_tile_slices(prefill, element_bytes, dim) == 1 ? teams / row_teams : 1;
  }
  int threads() const { return 32 * sdpa_tile_simdgroups(prefill, element_bytes, dim); }
  /// A kernel that declares threadgroup memory is to be given some, needed or not.
  std::uint32_t threadgroup_bytes() const {
    const int needed = sdpa_tile_threadgroup_bytes(prefill, element_bytes, dim, row_teams);
    return static_cast<std::uint32_t>(std::max(needed, 16));
  }
};

/// The kernel's name; the table is made once, since a plan keeps the pointer.
const char* kernel_name(const SdpaProblem& problem, const TileShape& shape) {
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
bool rows_aligned(const TensorView& view) {
  const auto aligned = [&](std::int64_t elements) {
    return elements * view.element_size % 16 == 0;
  };
  return aligned(view.layout.offset) && (view.batch <= 1 || aligned(view.layout.batch_stride)) &&
         (view.heads <= 1 || aligned(view.layout.head_stride)) &&
         (view.rows <= 1 || aligned(view.layout.row_stride));
}

bool rows_aligned(const SdpaProblem& problem) {
  for (const PlanOperand operand : {PlanOperand::q, PlanOperand::k, PlanOperand::v}) {
    if (!rows_aligned(operand_info(operand).view(problem))) return false;
  }
  return true;
}

/// Rows that fill whole tiles, whatever G is: cuts between them leave tiles as they are.
WorkUnit unit_of(const TileShape& shape, std::int64_t group) {
  return {shape.rows / std::gcd(static_cast<std::int64_t>(shape.rows), group), group};
}

SdpaSpanRule span_rule(const SdpaProblem& problem, std::int64_t rows, const TileShape& shape,
                       const WorkUnit& unit) {
  SdpaSpanRule rule{};
  const bool f16 = problem.dtype == DType::f16;
  rule.limit = sdpa_longest_span(shape.prefill, f16) * shape.sharing_teams();
  rule.span_len = rule.limit;
  if (!shape.prefill) {
    rule.span_len = sdpa_decode_span_len(shape.element_bytes, static_cast<int>(problem.head_dim));
  } else if (rows <= SDPA_SHORT_SPAN_ROWS) {
    rule.span_len = sdpa_chunk_span_len(rows);
  }
  rule.max_spans = max_spans(problem, unit);
  rule.grouped = problem.n_heads > problem.n_kv_heads;
  return rule;
}

}  // namespace

bool tiles_take(const SdpaProblem& problem) {
  return problem.head_dim % 8 == 0 && problem.head_dim == problem.value_dim &&
         problem.head_dim <= SDPA_TILE_MAX_HEAD_DIM;
}

KernelFacts tile_kernel(const SdpaProblem& problem, std::int64_t rows, bool prefill) {
  const TileShape shape(problem, rows, prefill);
  KernelFacts kernel;
  kernel.kernel = kernel_name(problem, shape);
  kernel.group = problem.n_heads / problem.n_kv_heads;
  kernel.block = shape.rows * shape.row_teams;
  kernel.threads = static_cast<std::uint32_t>(shape.threads());
  kernel.threadgroup_bytes = shape.threadgroup_bytes();
  kernel.group_split = static_cast<std::uint32_t>(shape.row_teams);
  kernel.unit = unit_of(shape, kernel.group);
  kernel.spans = span_rule(problem, rows, shape, kernel.unit);
  kernel.rate = prefill ? kPrefillKernelRate : kDecodeKernelRate;
  if (problem.head_dim < shape.dim) kernel.constants.push_back({SDPA_CONSTANT_PADDED, true});
  if (shape.row_teams < shape.teams) kernel.constants.push_back({SDPA_CONSTANT_SHARED, true});
  if (rows_aligned(problem)) kernel.aligned_constant = SDPA_CONSTANT_ALIGNED;
  return kernel;
}

}  // namespace metal_sdpa
