// metal_sdpa::Error becomes the Python exception of its code.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "metal_sdpa/error.h"

namespace metal_sdpa::python {

/// Sets the Python error of the exception in flight; for functions that Python calls directly.
/// Call inside a catch block.
void set_error_in_flight() noexcept;

/// The text of the Python error that is set, which is then cleared: its first line, which says
/// what is wrong (torch appends its C++ stack). Errors that are no complaint about the call
/// (KeyboardInterrupt, SystemExit, MemoryError) are raised instead.
std::string take_python_error_text();

/// str(object.NAME); empty where that is missing, None or raises.
std::string attribute_text(PyObject* object, const char* name);

}  // namespace metal_sdpa::python
