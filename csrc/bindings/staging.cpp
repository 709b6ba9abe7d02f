// Row by row where the last axis is contiguous, else element by element.
#include "staging.h"

#include <cstring>

namespace metal_sdpa::python {
namespace {

/// Calls `copy(packed, elements, bytes)` for every run of elements that lie one behind the other.
template <typename Copy>
void for_each_run(char* packed, const Array& array, Copy&& copy) {
  const auto size = static_cast<std::int64_t>(dtype_size(array.dtype));
  const bool whole_rows = array.strides[3] == 1 || array.shape[3] == 1;
  const std::int64_t runs = whole_rows ? 1 : array.shape[3];
  const std::int64_t bytes = whole_rows ? array.shape[3] * size : size;
  char* const first = static_cast<char*>(array.data);
  for (std::int64_t b = 0; b < array.shape[0]; ++b) {
    for (std::int64_t h = 0; h < array.shape[1]; ++h) {
      for (std::int64_t i = 0; i < array.shape[2]; ++i) {
        for (std::int64_t j = 0; j < runs; ++j) {
          const std::int64_t element = b * array.strides[0] + h * array.strides[1] +
                                       i * array.strides[2] + j * array.strides[3];
          copy(packed, first + element * size, static_cast<std::size_t>(bytes));
          packed += bytes;
        }
      }
    }
  }
}

}  // namespace

Placement packed_placement(const Array& array) {
  Placement placement;
  std::int64_t stride = 1;
  for (int axis = 3; axis >= 0; --axis) {
    placement.strides[axis] = array.strides[axis] == 0 && array.shape[axis] == 1 ? 0 : stride;
    stride *= array.shape[axis];
  }
  return placement;
}

Buffer stage_empty(const Device& device, const Array& array, Placement& placement) {
  if (array.empty) return {};
  placement = packed_placement(array);
  return device.empty(Shape(array.shape, array.shape + 4), array.dtype);
}

Buffer stage_in(const Device& device, const Array& array, Placement& placement) {
  Buffer buffer = stage_empty(device, array, placement);
  for_each_run(
      static_cast<char*>(buffer.data()), array,
      [](char* packed, const char* run, std::size_t bytes) { std::memcpy(packed, run, bytes); });
  return buffer;
}

void stage_out(const Buffer& buffer, const Array& array) {
  for_each_run(
      static_cast<char*>(buffer.data()), array,
      [](const char* packed, char* run, std::size_t bytes) { std::memcpy(run, packed, bytes); });
}

}  // namespace metal_sdpa::python
