// Row by row, because the last dimension is contiguous on both sides.
#include "staging.h"

#include <cstring>

namespace metal_sdpa::python {
namespace {

/// Calls `copy(packed_row, array_row, bytes)` for every row of a 4-dimensional array.
template <typename Copy>
void for_each_row(char* packed, const Array& array, Copy&& copy) {
  const auto size = static_cast<std::int64_t>(dtype_size(array.dtype));
  const std::int64_t row_bytes = array.shape[3] * size;
  char* const first = static_cast<char*>(array.data);
  for (std::int64_t b = 0; b < array.shape[0]; ++b) {
    for (std::int64_t h = 0; h < array.shape[1]; ++h) {
      for (std::int64_t i = 0; i < array.shape[2]; ++i) {
        const std::int64_t element =
            b * array.strides[0] + h * array.strides[1] + i * array.strides[2];
        copy(packed, first + element * size, static_cast<std::size_t>(row_bytes));
        packed += row_bytes;
      }
    }
  }
}

}  // namespace

Buffer stage_empty(const Device& device, const Array& array, TensorLayout& layout) {
  if (array.empty) return {};
  layout = {0, array.shape[1] * array.shape[2] * array.shape[3], array.shape[2] * array.shape[3],
            array.shape[3]};
  return device.empty(array.shape_list(), array.dtype);
}

Buffer stage_in(const Device& device, const Array& array, TensorLayout& layout) {
  Buffer buffer = stage_empty(device, array, layout);
  for_each_row(
      static_cast<char*>(buffer.data()), array,
      [](char* packed, const char* row, std::size_t bytes) { std::memcpy(packed, row, bytes); });
  return buffer;
}

void stage_out(const Buffer& buffer, const Array& array) {
  for_each_row(
      static_cast<char*>(buffer.data()), array,
      [](const char* packed, char* row, std::size_t bytes) { std::memcpy(row, packed, bytes); });
}

}  // namespace metal_sdpa::python
