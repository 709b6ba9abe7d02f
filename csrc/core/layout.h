// Extents and overlaps of strided [B, H, rows, D] tensors, in exact 64-bit arithmetic.
#pragma once

#include <cstdint>

#include "metal_sdpa/buffer.h"
#include "metal_sdpa/export.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa {

// Exported functions serve the bindings; no public header declares them.

/// Bytes that a packed tensor of `shape` takes; InvalidArgument where 64 bits do not hold it.
METAL_SDPA_API std::size_t shape_byte_len(const Shape& shape, DType dtype, const char* call);

/// The largest number where 64 bits do not hold the product: no memory reaches that far.
inline std::int64_t saturated_product(std::int64_t a, std::int64_t b) {
  std::int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

/// A tensor of a problem: its extents, its layout and the size of one element.
struct TensorView {
  std::int64_t batch = 1;
  std::int64_t heads = 1;
  std::int64_t rows = 1;
  std::int64_t width = 1;  ///< elements of one contiguous row
  TensorLayout layout;
  std::int64_t element_size = 4;
};

inline bool has_no_element(const TensorView& view) {
  return view.batch == 0 || view.heads == 0 || view.rows == 0;
}

/// Elements first..last (inclusive) from the start of the buffer; false where 64 bits overflow.
/// They mean nothing for a view without elements. Inline, because every call asks some 12 times.
inline bool element_extent(const TensorView& view, std::int64_t& first, std::int64_t& last) {
  std::int64_t low = view.layout.offset;
  std::int64_t high = view.layout.offset;
  const auto reach = [&](std::int64_t count, std::int64_t stride) {
    std::int64_t distance = 0;
    if (__builtin_mul_overflow(count - 1, stride, &distance)) return false;
    std::int64_t& end = distance < 0 ? low : high;
    return !__builtin_add_overflow(end, distance, &end);
  };
  std::int64_t bytes = 0;
  const bool fits = reach(view.batch, view.layout.batch_stride) &&
                    reach(view.heads, view.layout.head_stride) &&
                    reach(view.rows, view.layout.row_stride) &&
                    !__builtin_add_overflow(high, view.width - 1, &high) &&
                    !__builtin_mul_overflow(low, view.element_size, &bytes) &&
                    !__builtin_mul_overflow(high, view.element_size, &bytes);
  first = low;
  last = high;
  return fits;
}

/// True where two different elements of the view share bytes.
bool overlaps_itself(const TensorView& view);

/// True where an element of `a`, in a buffer that starts at address a_base, shares bytes with one
/// of `b`. Both extents must have passed element_extent.
bool views_overlap(const TensorView& a, std::uint64_t a_base, const TensorView& b,
                   std::uint64_t b_base);

}  // namespace metal_sdpa
