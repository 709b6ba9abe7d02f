// metal_sdpa::Error becomes the Python exception of its code.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "metal_sdpa/error.h"

namespace metal_sdpa::python {

/// Sets the Python error of the exception in flight; for functions that Python calls directly.
/// Call inside a catch block.
void set_error_in_flight() noexcept;

/// The text of the Python error that is set, which is then cleared.
std::string take_python_error_text();

}  // namespace metal_sdpa::python
