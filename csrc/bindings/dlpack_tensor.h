// The fields of a DLTensor, checked: a producer may put anything into them.
#pragma once

#include "array.h"
#include "dlpack.h"

namespace metal_sdpa::python {

/// Unsupported unless memory of that DLPack device type is host memory or Metal's.
void check_device_type(Argument argument, std::int64_t device_type);

/// Fills `array` from the tensor that `object` gave. UnsupportedDType, Unsupported (devices) or
/// InvalidArgument, naming the field, for what no array can be.
void describe_tensor(Argument argument, const DLTensor& tensor, PyObject* object,
                     const TakenDTypes& dtypes, Array& array);

}  // namespace metal_sdpa::python
