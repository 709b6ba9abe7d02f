// New arrays of the caller's framework.
#pragma once

#include "array.h"
#include "metal_sdpa/device.h"

namespace metal_sdpa::python {

/// An array to be, of packed row-major memory: first written through `array`, then handed over.
struct Result {
  Array array;
  nb::object object;  ///< the finished array, or null while `buffer` holds the memory
  Buffer buffer;

  /// The array as the framework of `like` shows it.
  nb::object take(Argument argument, PyObject* like);
};

/// Uninitialised where the framework can. `dtype` is that of `like`, whose framework it takes, or
/// f32. The memory lies on `device` where `like` does, else on the host.
void make_result(Argument argument, const Device& device, const Array& like, PyObject* like_object,
                 DType dtype, const std::int64_t* shape, int ndim, Result& result);

/// Finds NumPy's functions; once, when the module is made.
void init_results();

}  // namespace metal_sdpa::python
