// The table of operands and their views.
#include "core/operands.h"

#include <limits>

#include "shaders/sdpa_args.h"

namespace metal_sdpa {
namespace {

constexpr std::int64_t kTooFar = std::numeric_limits<std::int64_t>::max();

TensorView view_of(const SdpaProblem& p, std::int64_t heads, std::int64_t rows, std::int64_t width,
                   const TensorLayout& layout, DType dtype) {
  return {p.batch, heads, rows, width, layout, static_cast<std::int64_t>(dtype_size(dtype))};
}

/// Of q, out or lse: one sequence's rows, or all packed ones.
TensorView query_view(const SdpaProblem& p, std::int64_t width, const TensorLayout& layout,
                      DType dtype) {
  TensorView view = view_of(p, p.n_heads, p.seq_len, width, layout, dtype);
  if (!p.has_packed_queries()) return view;
  view.batch = 1;
  view.rows = p.q_total;
  return view;
}

/// Of k or v: one sequence's rows, all packed ones, or pages.
TensorView key_view(const SdpaProblem& p, std::int64_t width, const TensorLayout& layout) {
  TensorView view = view_of(p, p.n_kv_heads, p.kv_capacity, width, layout, p.dtype);
  if (p.has_packed_keys()) {
    view.batch = 1;
    view.rows = p.kv_total;
  }
  if (p.pages.has_value()) {
    view.batch = p.pages->n_pages;
    view.rows = p.pages->page_len;
  }
  return view;
}

TensorView table_view(const SdpaProblem& p) {
  const PageTable& pages = *p.pages;
  const TensorLayout layout{pages.offset, pages.sequence_stride, 0, pages.entry_stride};
  const std::int64_t sequences = pages.starts.empty() ? p.batch : 1;
  return {sequences, 1,      pages.n_entries,
          1,         layout, static_cast<std::int64_t>(dtype_size(pages.dtype))};
}

/// From the first element of a mask's row to the last one; kTooFar where 64 bits do not hold it.
std::int64_t row_reach(std::int64_t keys, std::int64_t key_stride) {
  std::int64_t reach = 0;
  if (keys < 2) return 0;
  if (__builtin_mul_overflow(keys - 1, key_stride, &reach)) return kTooFar;
  return reach < -kTooFar ? kTooFar : reach;
}

/// A row of a mask spans all between its first key and its last, whatever lies between.
TensorView mask_view(const SdpaProblem& p) {
  const MaskLayout& mask = *p.mask;
  TensorLayout layout{mask.offset, mask.batch_stride, mask.head_stride, mask.row_stride};
  std::int64_t reach = row_reach(p.kv_capacity, mask.key_stride);
  if (reach < 0) {
    if (__builtin_add_overflow(layout.offset, reach, &layout.offset)) reach = -kTooFar;
    reach = -reach;
  }
  const std::int64_t width = reach == kTooFar ? kTooFar : reach + 1;
  TensorView view = query_view(p, width, layout, mask.dtype);
  if (p.kv_capacity == 0) view.rows = 0;
  return view;
}

TensorView head_view(const SdpaProblem& p, const HeadLayout& heads) {
  const TensorLayout layout{heads.offset, heads.batch_stride, heads.head_stride, 0};
  return view_of(p, p.n_heads, 1, 1, layout, heads.dtype);
}

bool always(const SdpaProblem&) { return true; }
DType q_dtype(const SdpaProblem& p) { return p.dtype; }

constexpr std::array<OperandInfo, kOperands> kTable{{
    {PlanOperand::q, "q", SDPA_BUFFER_Q, &SdpaOperands::q, false, always, q_dtype, "q has ",
     [](const SdpaProblem& p) { return query_view(p, p.head_dim, p.q, p.dtype); }},
    {PlanOperand::k, "k", SDPA_BUFFER_K, &SdpaOperands::k, false, always, q_dtype, "q has ",
     [](const SdpaProblem& p) { return key_view(p, p.head_dim, p.k); }},
    {PlanOperand::v, "v", SDPA_BUFFER_V, &SdpaOperands::v, false, always, q_dtype, "q has ",
     [](const SdpaProblem& p) { return key_view(p, p.value_dim, p.v); }},
    {PlanOperand::out, "output", SDPA_BUFFER_OUT, &SdpaOperands::out, true, always,
     [](const SdpaProblem& p) { return p.out_dtype(); }, "it takes ",
     [](const SdpaProblem& p) { return query_view(p, p.value_dim, p.out, p.out_dtype()); }},
    {PlanOperand::lse, "lse", SDPA_BUFFER_LSE, &SdpaOperands::lse, true,
     [](const SdpaProblem& p) { return p.return_lse; },
     [](const SdpaProblem&) { return DType::f32; }, "it takes ",
     [](const SdpaProblem& p) {
       const std::int64_t rows = p.has_packed_queries() ? p.q_total : p.seq_len;
       return query_view(p, 1, {0, p.n_heads * rows, rows, 1}, DType::f32);
     }},
    {PlanOperand::mask, "mask", SDPA_BUFFER_MASK, &SdpaOperands::mask, false,
     [](const SdpaProblem& p) { return p.mask.has_value(); },
     [](const SdpaProblem& p) { return p.mask->dtype; }, "its layout says ", mask_view},
    {PlanOperand::sinks, "sinks", SDPA_BUFFER_SINKS, &SdpaOperands::sinks, false,
     [](const SdpaProblem& p) { return p.sinks.has_value(); },
     [](const SdpaProblem& p) { return p.sinks->dtype; }, "its layout says ",
     [](const SdpaProblem& p) { return head_view(p, *p.sinks); }},
    {PlanOperand::alibi_slopes, "alibi_slopes", SDPA_BUFFER_ALIBI, &SdpaOperands::alibi_slopes,
     false, [](const SdpaProblem& p) { return p.alibi_slopes.has_value(); },
     [](const SdpaProblem& p) { return p.alibi_slopes->dtype; }, "its layout says ",
     [](const SdpaProblem& p) { return head_view(p, *p.alibi_slopes); }},
    {PlanOperand::block_table, "block_table", SDPA_BUFFER_PAGES, &SdpaOperands::block_table, false,
     [](const SdpaProblem& p) { return p.pages.has_value(); },
     [](const SdpaProblem& p) { return p.pages->dtype; }, "its layout says ", table_view},
}};

}  // namespace

const std::array<OperandInfo, kOperands>& operand_table() { return kTable; }

PlanRange operand_range(const SdpaProblem& problem, const OperandInfo& info) {
  const TensorView view = info.view(problem);
  std::int64_t first = 0;
  std::int64_t last = 0;
  if (view.rows == 0 || !element_extent(view, first, last)) return {info.operand, 0, 0};
  return {info.operand, static_cast<std::uint64_t>(first * view.element_size),
          static_cast<std::uint64_t>((last - first + 1) * view.element_size)};
}

}  // namespace metal_sdpa
