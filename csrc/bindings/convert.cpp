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
  if (PyLong_CheckExact(value.ptr())) return false;
  const nb::object name = find_attribute(value.type(), "__name__");
  if (!name.is_valid() || !PyUnicode_Check(name.ptr())) return false;
  return PyUnicode_CompareWithASCIIString(name.ptr(), "bool_") == 0 ||  // NumPy 1
         PyUnicode_CompareWithASCIIString(name.ptr(), "bool") == 0;     // NumPy 2
}

/// An array's elements as Python's own numbers, in lists; anything else as it is. Null where an
/// array does not tell them (one that JAX traces).
nb::object plain_of(nb::handle value) {
  if (PyList_CheckExact(value.ptr()) || PyTuple_CheckExact(value.ptr())) return nb::borrow(value);
  const nb::object method = find_attribute(value, "tolist");
  if (!method.is_valid()) return nb::borrow(value);
  PyObject* plain = PyObject_CallObject(method.ptr(), nullptr);
  if (plain == nullptr) drop_python_error();
  return nb::steal(plain);
}

/// Entries in an order of their own: no text, set, dict, or class that has keys() as dicts do.
bool is_sequence(nb::handle value) {
  if (PyList_CheckExact(value.ptr()) || PyTuple_CheckExact(value.ptr())) return true;
  if (PyUnicode_Check(value.ptr()) || PyBytes_Check(value.ptr())) return false;
  if (PyByteArray_Check(value.ptr()) || !PySequence_Check(value.ptr())) return false;
  return !find_attribute(value, "keys").is_valid();
}

std::vector<std::int64_t> int_list(Argument argument, nb::handle value, const char* wanted) {
  const nb::object entries = entries_of(value);
  if (!entries.is_valid()) fail_type(argument, value, wanted);
  std::vector<std::int64_t> list;
  for (const nb::handle entry : nb::borrow<nb::list>(entries)) {
    list.push_back(to_int64(argument, entry));
  }
  return list;
}

/// The last part of the dtype's own name: "float32" of torch.float32. The type of what has none.
std::string dtype_text(nb::handle value) {
  nb::object name;
  if (!PyUnicode_Check(value.ptr())) {
    name = find_attribute(value, PyType_Check(value.ptr()) ? "__name__" : "name");
  }
  const std::string text = text_or_empty(name.is_valid() ? nb::handle(name) : value);
  return text.empty() ? type_text(value) : text.substr(text.rfind('.') + 1);
}

struct DTypeName {
  const char* name;
  DType dtype;
};

constexpr DTypeName kDTypeNames[] = {
    {"f32", DType::f32},   {"float32", DType::f32},   {"f16", DType::f16}, {"float16", DType::f16},
    {"bf16", DType::bf16}, {"bfloat16", DType::bf16}, {"u8", DType::u8},   {"uint8", DType::u8},
    {"u16", DType::u16},   {"uint16", DType::u16},    {"u32", DType::u32}, {"uint32", DType::u32},
    {"i32", DType::i32},   {"int32", DType::i32},     {"i64", DType::i64}, {"int64", DType::i64},
};

/// The number's digits; its type where those are too many for an error text.
std::string number_text(nb::handle value) {
  constexpr std::size_t kMostDigits = 40;
  const std::string digits = text_or_empty(value);  // Python itself writes out at most 4300
  return digits.empty() || digits.size() > kMostDigits ? type_text(value) : digits;
}

}  // namespace

std::string type_text(nb::handle value) {
  if (value.is_none()) return "None";
  const nb::object attribute = find_attribute(value.type(), "__qualname__");
  std::string name;
  if (!attribute.is_valid() || !find_text(attribute, name) || name.empty()) name = "object";
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
    drop_python_error();
    fail_type(argument, value, "an int");
  }
  const long long converted = PyLong_AsLongLong(index.ptr());
  if (converted == -1 && PyErr_Occurred() != nullptr) {
    drop_python_error();
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
  drop_python_error();
  if (!too_large) fail_type(argument, value, "a number");
  fail_argument(argument.call, ": ", argument.name, ": ", number_text(value),
                " is out of range, takes what a float holds");
}

bool to_bool(Argument argument, nb::handle value) {
  if (value.ptr() == Py_True) return true;
  if (value.ptr() == Py_False) return false;
  if (!is_bool(value)) fail_type(argument, value, "a bool");
  const int truth = PyObject_IsTrue(value.ptr());
  if (truth >= 0) return truth == 1;
  drop_python_error();
  fail_type(argument, value, "a bool");
}

std::string to_text(Argument argument, nb::handle value) {
  if (!PyUnicode_Check(value.ptr())) fail_type(argument, value, "a str");
  std::string text;
  if (find_text(value, text)) return text;
  fail_argument(argument.call, ": ", argument.name,
                ": holds a lone surrogate, takes text that UTF-8 holds");
}

nb::object entries_of(nb::handle value) {
  const nb::object source = plain_of(value);
  if (!source.is_valid() || !is_sequence(source)) return {};
  PyObject* list = PySequence_List(source.ptr());
  if (list == nullptr) drop_python_error();
  return nb::steal(list);
}

std::vector<std::int64_t> to_int_list(Argument argument, nb::handle value) {
  return int_list(argument, value, "a sequence of ints");
}

IntOrList to_int_or_list(Argument argument, nb::handle value) {
  if (PyLong_Check(value.ptr())) return {true, to_int64(argument, value), {}};
  const nb::object plain = plain_of(value);
  if (!plain.is_valid()) fail_type(argument, value, kIntOrInts);
  if (PyLong_Check(plain.ptr())) return {true, to_int64(argument, plain), {}};
  if (!is_sequence(plain)) fail_type(argument, value, kIntOrInts);
  return {false, 0, int_list(argument, plain, kIntOrInts)};
}

Shape to_shape(Argument argument, nb::handle value) {
  const nb::object plain = plain_of(value);  // an array has __index__ too, whatever its shape
  if (!plain.is_valid()) fail_type(argument, value, kIntOrInts);
  if (PyIndex_Check(plain.ptr())) return {to_int64(argument, plain)};
  if (!is_sequence(plain)) fail_type(argument, value, kIntOrInts);
  return int_list(argument, plain, kIntOrInts);
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

DType to_dtype(Argument argument, nb::handle value, const char* dtypes) {
  if (nb::isinstance<DType>(value)) return nb::cast<DType>(value);
  const nb::object native = find_attribute(value, "isnative");
  if (native.is_valid() && native.is(nb::handle(Py_False))) {
    fail(ErrorCode::unsupported_dtype, argument.call, ": ", argument.name, ": ",
         text_or_empty(value), " is byte-swapped, takes the machine's byte order");
  }
  const std::string text = dtype_text(value);
  for (const DTypeName& known : kDTypeNames) {
    if (text == known.name) return known.dtype;
  }
  fail(ErrorCode::unsupported_dtype, argument.call, ": ", argument.name, ": ", text, ", takes ",
       dtypes);
}

}  // namespace metal_sdpa::python
