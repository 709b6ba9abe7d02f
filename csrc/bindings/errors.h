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

/// Clears the Python error that is set, which then becomes an error of ours. Those that are no
/// complaint about the call are raised instead, as by take_python_error_text.
void drop_python_error();

/// object.NAME; null where there is none, or where looking for it raises.
nanobind::object find_attribute(nanobind::handle object, const char* name);

/// The text of a str; false for anything else, and for what UTF-8 does not hold (lone surrogates).
bool find_text(nanobind::handle value, std::string& text);

/// str(object); empty where that raises, or holds what UTF-8 does not.
std::string text_or_empty(nanobind::handle object);

/// str(object.NAME); empty where that is missing, None or raises.
std::string attribute_text(PyObject* object, const char* name);

}  // namespace metal_sdpa::python
