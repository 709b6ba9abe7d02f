// Host arrays for a device that cannot see host memory: packed copies, in and out.
#pragma once

#include "array.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa::python {

/// Whether the device needs a copy of the array.
inline bool needs_staging(const Device& device, const Array& array) {
  return device.kind() == DeviceKind::metal && !array.on_metal;
}

/// Where the first element of a Buffer of four axes stands, and how far apart the others are.
struct Placement {
  std::int64_t offset = 0;
  std::int64_t strides[4] = {};
};

/// That of a packed copy.
Placement packed_placement(const Array& array);

/// Packed memory of the device for an array of four axes; `placement` becomes that of the copy,
/// with strides of 0 where the array has them. An empty Buffer where the array has no element.
/// Needs no GIL.
Buffer stage_empty(const Device& device, const Array& array, Placement& placement);

/// The same with the array's elements.
Buffer stage_in(const Device& device, const Array& array, Placement& placement);

/// Copies packed elements to where the array has them.
void stage_out(const Buffer& buffer, const Array& array);

inline void place(const Placement& placement, TensorLayout& layout) {
  layout = {placement.offset, placement.strides[0], placement.strides[1], placement.strides[2]};
}
inline void place(const Placement& placement, MaskLayout& layout) {
  const std::int64_t* strides = placement.strides;
  layout = {layout.dtype, placement.offset, strides[0], strides[1], strides[2], strides[3]};
}
inline void place(const Placement& placement, HeadLayout& layout) {
  layout = {layout.dtype, placement.offset, placement.strides[0], placement.strides[1]};
}
inline void place(const Placement& placement, PageTable& table) {
  table.offset = placement.offset;
  table.sequence_stride = placement.strides[0];
  table.entry_stride = placement.strides[3];
}

}  // namespace metal_sdpa::python
