// Python arguments become C++ values, and what does not fit becomes an error of ours.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <string>

#include "core/text.h"
#include "metal_sdpa/encoder.h"

namespace metal_sdpa::python {

namespace nb = nanobind;

/// Where a value stands in a call; begins every error text.
struct Argument {
  const char* call;
  const char* name;
};

/// The value's type with an article ("a str", "None").
std::string type_text(nb::handle value);

/// The Error that becomes metal_sdpa.InvalidType.
class InvalidType : public Error {
 public:
  explicit InvalidType(const std::string& text) : Error(ErrorCode::invalid_argument, text) {}
};

/// InvalidType: `call: name: got a TYPE, takes WANTED`.
[[noreturn]] void fail_type(Argument argument, nb::handle value, const char* wanted);

/// A Python or NumPy integer that fits into 64 bits, but no bool; false for anything else.
bool find_int64(nb::handle value, std::int64_t& found);
/// A Python or NumPy integer, but no bool.
std::int64_t to_int64(Argument argument, nb::handle value);
/// The same within low..high.
std::int64_t to_int_between(Argument argument, nb::handle value, std::int64_t low,
                            std::int64_t high);
std::size_t to_size(Argument argument, nb::handle value);
double to_double(Argument argument, nb::handle value);
/// A Python or NumPy bool.
bool to_bool(Argument argument, nb::handle value);
std::string to_text(Argument argument, nb::handle value);
/// A new list of the entries of a sequence or array; null for text, sets, dicts and all else.
nb::object entries_of(nb::handle value);
/// An int or a sequence of ints.
Shape to_shape(Argument argument, nb::handle value);
/// A sequence of ints, or a one-dimensional array of them.
std::vector<std::int64_t> to_int_list(Argument argument, nb::handle value);
struct IntOrList {
  bool single = true;
  std::int64_t value = 0;
  std::vector<std::int64_t> list;
};

/// An int, or a sequence or one-dimensional array of ints.
IntOrList to_int_or_list(Argument argument, nb::handle value);
/// Up to three extents; the others are 1.
GridSize to_grid(Argument argument, nb::handle value);
/// A DType, its name, or a dtype of NumPy, ml_dtypes, torch, JAX or MLX. UnsupportedDType else;
/// `dtypes` says in its text what the call takes.
DType to_dtype(Argument argument, nb::handle value,
               const char* dtypes = "f32, f16, bf16, u8, u16, u32, i32 or i64");

/// An object of a bound class, by reference.
template <typename T>
T& to_object(Argument argument, nb::handle value, const char* wanted) {
  if (!nb::isinstance<T>(value)) fail_type(argument, value, wanted);
  return nb::cast<T&>(value);
}

}  // namespace metal_sdpa::python
