// From the arrays of a call to an SdpaProblem.
#pragma once

#include "array.h"
#include "metal_sdpa/sdpa.h"
#include "sdpa_call.h"

namespace metal_sdpa::python {

/// q, k and v, described, and the problem that they pose; `problem.out` is packed.
struct SdpaInputs {
  Array q, k, v;
  SdpaProblem problem;
};

/// Everything but memory: shapes, dtypes, options. Errors name the argument.
void read_sdpa_inputs(const SdpaCall& call, SdpaInputs& inputs);

/// One 4-dimensional array: the argument's name, its extents in words ("[B, Hq, L, D]").
void import_tensor(Argument argument, PyObject* object, const char* extents, Array& array);

/// Strides of a tensor whose last dimension is contiguous; InvalidArgument for another.
TensorLayout tensor_layout(Argument argument, const Array& array);

/// The bytes that the tensor touches, wrapped for the device; `layout.offset` becomes the distance
/// from their start to element 0. An empty Buffer where the tensor has no element.
Buffer wrap_tensor(const Device& device, Argument argument, const Array& array,
                   TensorLayout& layout);

}  // namespace metal_sdpa::python
