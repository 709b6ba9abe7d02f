// The exception classes of the package.
#include "errors.h"

#include <array>
#include <new>

#include "bindings.h"
#include "convert.h"
#include "interrupts.h"

namespace metal_sdpa::python {
namespace {

struct ErrorClass {
  ErrorCode code;
  const char* name;  ///< qualified, as Python shows it
  PyObject** builtin;
  const char* doc;
};

const std::array<ErrorClass, 8>& error_classes() {
  static const std::array<ErrorClass, 8> classes{{
      {ErrorCode::invalid_argument, "metal_sdpa.InvalidArgument", &PyExc_ValueError,
       "A value, shape, state or range that the call does not take."},
      {ErrorCode::unsupported_dtype, "metal_sdpa.UnsupportedDType", &PyExc_TypeError,
       "A dtype, or a mix of dtypes, that the kernel does not take."},
      {ErrorCode::unsupported, "metal_sdpa.Unsupported", &PyExc_NotImplementedError,
       "Not built yet, or not on this device."},
      {ErrorCode::device_not_found, "metal_sdpa.DeviceNotFound", nullptr,
       "No such device kind, or no such device on this machine."},
      {ErrorCode::kernel_not_found, "metal_sdpa.KernelNotFound", nullptr,
       "No library of the registry has the function for this device."},
      {ErrorCode::shader_compilation, "metal_sdpa.ShaderCompilationError", nullptr,
       "The shader compiler refused; the text holds its whole log."},
      {ErrorCode::command_buffer, "metal_sdpa.CommandBufferError", nullptr,
       "The device reported an error while it ran a command buffer."},
      {ErrorCode::buffer_allocation, "metal_sdpa.BufferAllocationError", &PyExc_MemoryError,
       "The device had no memory for a buffer."},
  }};
  return classes;
}

// Live as long as the process: exceptions may be raised until the very end.
PyObject* g_error = nullptr;
PyObject* g_invalid_type = nullptr;
std::array<PyObject*, 8> g_classes{};

PyObject* class_of(ErrorCode code) {
  const auto& classes = error_classes();
  for (std::size_t i = 0; i < classes.size(); ++i) {
    if (classes[i].code == code) return g_classes[i];
  }
  return g_error;
}

PyObject* make_class(const char* name, const char* doc, PyObject* bases) {
  PyObject* made = PyErr_NewExceptionWithDoc(name, doc, bases, nullptr);
  if (made == nullptr) nb::raise_python_error();
  return made;
}

/// No code of C++ has it: there the compiler checks types.
void bind_invalid_type(nb::module_& module) {
  const nb::tuple bases = nb::make_tuple(nb::handle(class_of(ErrorCode::invalid_argument)),
                                         nb::handle(PyExc_TypeError));
  g_invalid_type =
      make_class("metal_sdpa.InvalidType",
                 "An argument of a Python type that the call does not take.", bases.ptr());
  module.attr("InvalidType") = nb::handle(g_invalid_type);
}

void set_error(const Error& error) noexcept {
  if (error.code() == ErrorCode::interrupted) {
    if (!restore_pending_interrupt()) PyErr_SetString(PyExc_KeyboardInterrupt, error.what());
    return;
  }
  const bool wrong_type = dynamic_cast<const InvalidType*>(&error) != nullptr;
  PyErr_SetString(wrong_type ? g_invalid_type : class_of(error.code()), error.what());
}

void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const Error& error) {
    set_error(error);
  }
}

void require_complaint(const nb::python_error& error) {
  if (!error.matches(PyExc_Exception) || error.matches(PyExc_MemoryError)) throw error;
}

}  // namespace

void set_error_in_flight() noexcept {
  try {
    throw;
  } catch (nb::python_error& error) {
    error.restore();
  } catch (const Error& error) {
    set_error(error);
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

void drop_python_error() {
  const nb::python_error error;
  require_complaint(error);
}

nb::object find_attribute(nb::handle object, const char* name) {
  PyObject* value = PyObject_GetAttrString(object.ptr(), name);
  if (value == nullptr) drop_python_error();
  return nb::steal(value);
}

bool find_text(nb::handle value, std::string& text) {
  if (!PyUnicode_Check(value.ptr())) return false;
  Py_ssize_t size = 0;
  const char* utf8 = PyUnicode_AsUTF8AndSize(value.ptr(), &size);
  if (utf8 == nullptr) {
    drop_python_error();
    return false;
  }
  text.assign(utf8, static_cast<std::size_t>(size));
  return true;
}

std::string text_or_empty(nb::handle object) {
  const nb::object value = nb::steal(PyObject_Str(object.ptr()));
  if (!value.is_valid()) drop_python_error();
  std::string text;
  if (value.is_valid()) find_text(value, text);
  return text;
}

std::string take_python_error_text() {
  const nb::python_error error;
  require_complaint(error);
  const std::string text = text_or_empty(error.value());
  if (text.empty()) return text_or_empty(nb::handle(error.type()).attr("__name__"));
  return text.substr(0, text.find('\n'));
}

std::string attribute_text(PyObject* object, const char* name) {
  const nb::object value = find_attribute(object, name);
  return value.is_valid() && !value.is_none() ? text_or_empty(value) : std::string();
}

void bind_errors(nb::module_& module) {
  g_error = make_class("metal_sdpa.Error", "Every error of this package.", nullptr);
  module.attr("Error") = nb::handle(g_error);
  const auto& classes = error_classes();
  for (std::size_t i = 0; i < classes.size(); ++i) {
    const nb::handle error(g_error);
    const nb::tuple bases = classes[i].builtin == nullptr
                                ? nb::make_tuple(error)
                                : nb::make_tuple(error, nb::handle(*classes[i].builtin));
    g_classes[i] = make_class(classes[i].name, classes[i].doc, bases.ptr());
    const std::string_view name = classes[i].name;
    module.attr(name.substr(name.find('.') + 1).data()) = nb::handle(g_classes[i]);
  }
  bind_invalid_type(module);
  nb::register_exception_translator(translate);
}

}  // namespace metal_sdpa::python
