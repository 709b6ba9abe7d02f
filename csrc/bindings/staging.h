// Host arrays for a device that cannot see host memory: packed copies, in and out.
#pragma once

#include "array.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa::python {

/// Whether the device needs a copy of the array.
inline bool needs_staging(const Device& device, const Array& array) {
  return device.kind() == DeviceKind::metal && !array.on_metal;
}

/// Packed memory of the device for a tensor [B, H, rows, width]; `layout` becomes that of the copy.
/// An empty Buffer where the tensor has no element. Needs no GIL.
Buffer stage_empty(const Device& device, const Array& array, TensorLayout& layout);

/// The same with the tensor's elements.
Buffer stage_in(const Device& device, const Array& array, TensorLayout& layout);

/// Copies packed elements to where the array has them.
void stage_out(const Buffer& buffer, const Array& array);

}  // namespace metal_sdpa::python
