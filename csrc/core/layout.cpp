// Extents and overlaps of strided tensors.
#include "core/layout.h"

#include <algorithm>
#include <array>
#include <vector>

namespace metal_sdpa {
namespace {

struct Axis {
  std::int64_t count;
  std::int64_t stride;
};

/// An axis of one entry has no stride, whatever the layout says: it may be any number.
Axis axis_of(std::int64_t count, std::int64_t stride) { return {count, count > 1 ? stride : 0}; }

std::array<Axis, 3> row_axes(const TensorView& view) {
  return {axis_of(view.batch, view.layout.batch_stride),
          axis_of(view.heads, view.layout.head_stride), axis_of(view.rows, view.layout.row_stride)};
}

/// Byte addresses of the first element of every row, sorted. A broadcast axis (stride 0) counts
/// once, so that there are no more entries than the view has bytes.
std::vector<std::int64_t> sorted_rows(TensorView view, std::int64_t base) {
  if (view.layout.batch_stride == 0) view.batch = 1;
  if (view.layout.head_stride == 0) view.heads = 1;
  if (view.layout.row_stride == 0) view.rows = 1;
  std::vector<std::int64_t> starts;
  starts.reserve(static_cast<std::size_t>(view.batch * view.heads * view.rows));
  for (std::int64_t b = 0; b < view.batch; ++b) {
    for (std::int64_t h = 0; h < view.heads; ++h) {
      for (std::int64_t i = 0; i < view.rows; ++i) {
        const std::int64_t element = view.layout.offset + b * view.layout.batch_stride +
                                     h * view.layout.head_stride + i * view.layout.row_stride;
        starts.push_back(base + element * view.element_size);
      }
    }
  }
  std::sort(starts.begin(), starts.end());
  return starts;
}

/// |stride|, also of the smallest integer, whose magnitude no signed one holds.
std::uint64_t magnitude(std::int64_t stride) {
  const auto bits = static_cast<std::uint64_t>(stride);
  return stride < 0 ? 0 - bits : bits;
}

/// Every stride steps over all that the smaller strides span: sufficient, not necessary.
bool nested_without_overlap(const TensorView& view) {
  std::array<Axis, 3> axes = row_axes(view);
  std::sort(axes.begin(), axes.end(),
            [](const Axis& a, const Axis& b) { return magnitude(a.stride) < magnitude(b.stride); });
  auto span = static_cast<std::uint64_t>(view.width);
  for (const Axis& axis : axes) {
    if (axis.count == 1) continue;
    const std::uint64_t stride = magnitude(axis.stride);
    if (stride < span) return false;
    std::uint64_t further = 0;
    if (__builtin_mul_overflow(static_cast<std::uint64_t>(axis.count - 1), stride, &further) ||
        __builtin_add_overflow(span, further, &span)) {
      return false;
    }
  }
  return true;
}

/// A broadcast axis, or more elements than places: some share one.
bool must_overlap(const TensorView& view) {
  std::int64_t first = 0;
  std::int64_t last = 0;
  if (!element_extent(view, first, last)) return true;
  std::int64_t elements = view.width;
  for (const Axis& axis : row_axes(view)) {
    if (axis.count > 1 && axis.stride == 0) return true;
    if (__builtin_mul_overflow(elements, axis.count, &elements)) return true;
  }
  return elements > last - first + 1;
}

bool rows_overlap(const std::vector<std::int64_t>& a, std::int64_t a_bytes,
                  const std::vector<std::int64_t>& b, std::int64_t b_bytes) {
  std::size_t i = 0;
  std::size_t j = 0;
  while (i < a.size() && j < b.size()) {
    if (a[i] + a_bytes <= b[j]) {
      ++i;
    } else if (b[j] + b_bytes <= a[i]) {
      ++j;
    } else {
      return true;
    }
  }
  return false;
}

struct ByteRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// The addresses that a view spans; false where 64 bits do not count them.
bool byte_range(const TensorView& view, std::int64_t base, ByteRange& range) {
  std::int64_t first = 0;
  std::int64_t last = 0;
  if (!element_extent(view, first, last)) return false;
  range = {base + first * view.element_size, base + (last + 1) * view.element_size};
  return true;
}

struct AxisField {
  std::int64_t TensorView::* count;
  std::int64_t TensorLayout::* stride;
};

constexpr std::array<AxisField, 3> kAxisFields = {{
    {&TensorView::batch, &TensorLayout::batch_stride},
    {&TensorView::heads, &TensorLayout::head_stride},
    {&TensorView::rows, &TensorLayout::row_stride},
}};

/// Leaves out an axis that both views have and whose steps no entry of either reaches over: entry i
/// of one can only meet entry i of the other, and all pairs lie alike. False where there is none.
///
/// Keys and values in halves of the same pages are told apart by it, however many pages there are.
bool drop_common_axis(TensorView& a, std::int64_t a_base, TensorView& b, std::int64_t b_base) {
  if (a.element_size != b.element_size) return false;
  for (const AxisField& axis : kAxisFields) {
    const std::int64_t count = a.*axis.count;
    const std::int64_t stride = a.layout.*axis.stride;
    if (count == 1 || count != b.*axis.count || stride != b.layout.*axis.stride) continue;
    TensorView a_entry = a;
    TensorView b_entry = b;
    a_entry.*axis.count = 1;
    b_entry.*axis.count = 1;
    ByteRange a_bytes;
    ByteRange b_bytes;
    if (!byte_range(a_entry, a_base, a_bytes) || !byte_range(b_entry, b_base, b_bytes))
      return false;
    const std::int64_t span =
        std::max(a_bytes.end, b_bytes.end) - std::min(a_bytes.begin, b_bytes.begin);
    const auto size = static_cast<std::uint64_t>(a.element_size);
    if (magnitude(stride) < (static_cast<std::uint64_t>(span) + size - 1) / size) continue;
    a = a_entry;
    b = b_entry;
    return true;
  }
  return false;
}

}  // namespace

bool overlaps_itself(const TensorView& view) {
  if (nested_without_overlap(view) || has_no_element(view)) return false;
  if (must_overlap(view)) return true;
  const std::vector<std::int64_t> rows = sorted_rows(view, 0);
  const std::int64_t row_bytes = view.width * view.element_size;
  const auto too_close = [row_bytes](std::int64_t a, std::int64_t b) { return b - a < row_bytes; };
  return std::adjacent_find(rows.begin(), rows.end(), too_close) != rows.end();
}

bool views_overlap(const TensorView& a, std::uint64_t a_base, const TensorView& b,
                   std::uint64_t b_base) {
  if (has_no_element(a) || has_no_element(b)) return false;
  const std::int64_t a_origin = static_cast<std::int64_t>(a_base);
  const std::int64_t b_origin = static_cast<std::int64_t>(b_base);
  TensorView a_part = a;
  TensorView b_part = b;
  do {
    ByteRange a_bytes;
    ByteRange b_bytes;
    if (!byte_range(a_part, a_origin, a_bytes) || !byte_range(b_part, b_origin, b_bytes)) {
      return true;
    }
    if (a_bytes.end <= b_bytes.begin || b_bytes.end <= a_bytes.begin) return false;
  } while (drop_common_axis(a_part, a_origin, b_part, b_origin));
  return rows_overlap(sorted_rows(a_part, a_origin), a.width * a.element_size,
                      sorted_rows(b_part, b_origin), b.width * b.element_size);
}

}  // namespace metal_sdpa
