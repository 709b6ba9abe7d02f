// New arrays of the caller's framework.
#pragma once

#include <array>

#include "array.h"
#include "metal_sdpa/device.h"

namespace metal_sdpa::python {

/// Axes of an array, outermost in memory first.
struct MemoryOrder {
  std::array<int, 4> axes{0, 1, 2, 3};
  bool logical = true;  ///< row-major
};

/// An array to be, of packed memory: first written through `array`, then handed over.
struct Result {
  Array array;
  nb::object object;  ///< the finished array, or null while `buffer` holds the memory
  Buffer buffer;
  MemoryOrder order;
  int ndim = 0;  ///< of the finished array

  /// The array as the framework of `like` shows it.
  nb::object take(Argument argument, PyObject* like);
};

/// A new array of the framework of `like` and of its dtype, or f32; uninitialised where the
/// framework can. Its axes lie in memory by falling |stride| of `like`, those of size 1 and of
/// equal strides in logical order, the last one innermost. The memory lies on `device` where `like`
/// does, else on the host; it has as many extents as `like`.
void make_result(Argument argument, const Device& device, const Array& like, PyObject* like_object,
                 DType dtype, const std::int64_t* shape, Result& result);

/// The same, row-major, of the first `ndim` extents.
void make_packed_result(Argument argument, const Device& device, const Array& like,
                        PyObject* like_object, DType dtype, const std::int64_t* shape, int ndim,
                        Result& result);

/// Finds NumPy's functions; once, when the module is made.
void init_results();

}  // namespace metal_sdpa::python
