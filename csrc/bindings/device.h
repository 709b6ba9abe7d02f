// Device arguments of Python calls.
#pragma once

#include "array.h"
#include "convert.h"
#include "metal_sdpa/device.h"

namespace metal_sdpa::python {

/// A Device, or the device of a kind by name.
Device to_device(Argument argument, nb::handle value);

/// The array's memory as a Buffer of `device`; InvalidArgument unless it is packed row-major.
Buffer wrap_array(const Device& device, Argument argument, const Array& array, DType dtype);

}  // namespace metal_sdpa::python
