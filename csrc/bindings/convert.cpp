// Conversions of arguments.
#include "convert.h"

#include <cmath>
#include <limits>

#include "errors.h"
#include "hidden_state.h"

namespace metal_sdpa::python {
namespace {

constexpr const char* kIntOrInts = "an int or a sequence of ints";

bool is_bool(nb::handle value) {
  if (PyBool_Check(value.ptr())) return true;
  const std::string name = nb::cast<std::string>(value.type().attr("__name__"));
  return name == "bool_" || name == "bool";  // NumPy 1 and 2
}

/// An array's elements as Python's own numbers, in lists; anything else as it is. Null where an
/// array does not tell them (one that JAX traces).
nb::object plain_of(nb::handle value) {
  if (!nb::hasattr(value, "tolist")) return nb::borrow(value);
  try {
    return value.attr("tolist")();
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_Exception)) throw;
    return {};
  }
}

/// A new list of the entries of a sequence or array that is not text; null where it is neither.
nb::object entries_of(nb::handle value) {
  if (PyUnicode_Check(value.ptr()) || PyBytes_Check(value.ptr())) return {};
  const nb::object source = plain_of(value);
  PyObject* list = source.is_valid() ? PySequence_List(source.ptr()) : nullptr;
  if (list == nullptr) PyErr_Clear();
  return nb::steal(list);
}

/// The last part of the dtype's own name: "float32" of torch.float32.
std::string dtype_text(nb::handle value) {
  nb::object name;
  if (PyUnicode_Check(value.ptr())) {
    name = nb::borrow(value);
  } else if (PyType_Check(value.ptr())) {
    name = value.attr("__name__");
  } else {
    name = nb::getattr(value, "name", nb::str(value));
  }
  const std::string text = nb::cast<std::string>(nb::str(nb::handle(name)));
  return text.substr(text.rfind('.') + 1);
}

struct DTypeName {
  const char* name;
  DType dtype;
};

constexpr DTypeName kDTypeNames[] = {
    {"f32", DType::f32},   {"float32", DType::f32},   {"f16", DType::f16}, {"float16", DType::f16},
    {"bf16", DType::bf16}, {"bfloat16", DType::bf16}, {"u8", DType::u8},   {"uint8", DType::u8},
    {"u16", DType::u16},   {"uint16", DType::u16},    {"u32", DType::u32}, {"uint32", DType::u32},
    {"i32", DType::i32},   {"int32", DType::i32},
};

/// The number's digits; its type where those are too many for an error text.
std::string number_text(nb::handle value) {
  constexpr std::size_t kMostDigits = 40;
  const nb::object text = nb::steal(PyObject_Str(value.ptr()));
  if (!text.is_valid()) PyErr_Clear();  // Python itself writes out no more than 4300 digits
  const std::string digits = text.is_valid() ? nb::cast<std::string>(text) : std::string();
  return digits.empty() || digits.size() > kMostDigits ? type_text(value) : digits;
}

}  // namespace

std::string type_text(nb::handle value) {
  if (value.is_none()) return "None";
  const std::string name = nb::cast<std::string>(value.type().attr("__qualname__"));
  const bool vowel = std::string_view("aeiouAEIOU").find(name[0]) != std::string_view::npos;
  return (vowel ? "an " : "a ") + name;
}

void fail_type(Argument argument, nb::handle value, const char* wanted) {
  throw InvalidType(
      text_of(argument.call, ": ", argument.name, ": got ", type_text(value), ", takes ", wanted));
}

std::int64_t to_int64(Argument argument, nb::handle value) {
  if (is_bool(value)) fail_type(argument, value, "an int");
  const nb::object index = nb::steal(PyNumber_Index(value.ptr()));
  if (!index.is_valid()) {
    PyErr_Clear();
    fail_type(argument, value, "an int");
  }
  const long long converted = PyLong_AsLongLong(index.ptr());
  if (converted == -1 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    fail_argument(argument.call, ": ", argument.name, ": ", number_text(index),
                  " does not fit into 64 bits");
  }
  return converted;
}

bool find_int64(nb::handle value, std::int64_t& found) {
  try {
    found = to_int64({"", ""}, value);
    return true;
  } catch (const Error&) {
    return false;
  }
}

std::int64_t to_int_between(Argument argument, nb::handle value, std::int64_t low,
                            std::int64_t high) {
  const std::int64_t converted = to_int64(argument, value);
  if (converted >= low && converted <= high) return converted;
  fail_argument(argument.call, ": ", argument.name, ": ", converted, ", takes ", low, " to ", high);
}

std::size_t to_size(Argument argument, nb::handle value) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  return static_cast<std::size_t>(to_int_between(argument, value, 0, kMost));
}

double to_double(Argument argument, nb::handle value) {
  if (PyFloat_CheckExact(value.ptr())) return PyFloat_AsDouble(value.ptr());
  if (is_bool(value) || !PyNumber_Check(value.ptr())) fail_type(argument, value, "a number");
  refuse_hidden_number(argument, value.ptr());
  const double converted = PyFloat_AsDouble(value.ptr());
  if (converted != -1.0 || PyErr_Occurred() == nullptr) return converted;
  const bool too_large = PyErr_ExceptionMatches(PyExc_OverflowError) != 0;
  PyErr_Clear();
  if (!too_large) fail_type(argument, value, "a number");
  fail_argument(argument.call, ": ", argument.name, ": ", number_text(value),
                " is out of range, takes what a float holds");
}

bool to_bool(Argument argument, nb::handle value) {
  if (value.ptr() == Py_True) return true;
  if (value.ptr() == Py_False) return false;
  if (!is_bool(value)) fail_type(argument, value, "a bool");
  return PyObject_IsTrue(value.ptr()) == 1;
}

std::string to_text(Argument argument, nb::handle value) {
  if (!PyUnicode_Check(value.ptr())) fail_type(argument, value, "a str");
  return nb::cast<std::string>(value);
}

std::vector<std::int64_t> to_int_list(Argument argument, nb::handle value) {
  const nb::object entries = entries_of(value);
  if (!entries.is_valid()) fail_type(argument, value, "a sequence of ints");
  std::vector<std::int64_t> list;
  for (const nb::handle entry : nb::borrow<nb::list>(entries)) {
    list.push_back(to_int64(argument, entry));
  }
  return list;
}

IntOrList to_int_or_list(Argument argument, nb::handle value) {
  if (PyLong_Check(value.ptr())) return {true, to_int64(argument, value), {}};
  const nb::object plain = plain_of(value);
  if (!plain.is_valid()) fail_type(argument, value, kIntOrInts);
  if (PyLong_Check(plain.ptr())) return {true, to_int64(argument, plain), {}};
  if (!PySequence_Check(plain.ptr())) fail_type(argument, value, kIntOrInts);
  return {false, 0, to_int_list(argument, plain)};
}

Shape to_shape(Argument argument, nb::handle value) {
  if (PyIndex_Check(value.ptr())) return {to_int64(argument, value)};
  return to_int_list(argument, value);
}

GridSize to_grid(Argument argument, nb::handle value) {
  const Shape extents = to_shape(argument, value);
  if (extents.empty() || extents.size() > 3) {
    fail_argument(argument.call, ": ", argument.name, ": got ", extents.size(),
                  " extents, takes 1 to 3");
  }
  std::uint32_t grid[3] = {1, 1, 1};
  for (std::size_t i = 0; i < extents.size(); ++i) {
    if (extents[i] < 0 || extents[i] > std::numeric_limits<std::uint32_t>::max()) {
      fail_argument(argument.call, ": ", argument.name, ": ", extents,
                    ", every extent takes 1 to 2^32 - 1");
    }
    grid[i] = static_cast<std::uint32_t>(extents[i]);
  }
  return {grid[0], grid[1], grid[2]};
}

DType to_dtype(Argument argument, nb::handle value) {
  if (nb::isinstance<DType>(value)) return nb::cast<DType>(value);
  if (nb::hasattr(value, "isnative") && !nb::cast<bool>(value.attr("isnative"))) {
    fail(ErrorCode::unsupported_dtype, argument.call, ": ", argument.name, ": ",
         nb::cast<std::string>(nb::str(value)), " is byte-swapped, takes the machine's byte order");
  }
  const std::string text = dtype_text(value);
  for (const DTypeName& known : kDTypeNames) {
    if (text == known.name) return known.dtype;
  }
  fail(ErrorCode::unsupported_dtype, argument.call, ": ", argument.name, ": ", text,
       ", takes f32, f16, bf16, u8, u16, u32 or i32");
}

}  // namespace metal_sdpa::python
