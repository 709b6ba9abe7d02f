// MLX arrays that a transformation traces.
#pragma once

#include "convert.h"

namespace metal_sdpa::python {

/// Whether one of MLX's transformations (grad, vjp, jvp, vmap, compile) records what is done to
/// one of the arrays. False under mx.disable_compile(), where MLX does not tell.
bool mlx_traces(PyObject* const* arrays, std::size_t n_arrays);

}  // namespace metal_sdpa::python
