// Numbers of index arrays, copied out: what was checked is what is used.
#include "index_array.h"

#include "hidden_state.h"
#include "sdpa_problem.h"

namespace metal_sdpa::python {
namespace {

constexpr const char* kInts = "an int32 or int64 array, or a sequence of ints";

bool is_array(nb::handle value) {
  if (PyLong_Check(value.ptr()) || PyList_CheckExact(value.ptr())) return false;
  return !PyTuple_CheckExact(value.ptr()) && !PyType_Check(value.ptr()) &&
         nb::hasattr(value, "__dlpack__");
}

/// First element in host memory. `memory` holds that of a Metal array.
const void* host_elements(Argument argument, const Array& array, Buffer& memory) {
  if (!array.on_metal) return array.data;
  std::int64_t offset = 0;
  memory = wrap_elements(Device("metal"), argument, array, offset);
  const auto* const bytes = static_cast<const char*>(memory.data());
  if (bytes == nullptr) {
    fail(ErrorCode::unsupported, argument.call, ": ", argument.name,
         ": is in memory that the host does not see");
  }
  return bytes + offset * static_cast<std::int64_t>(dtype_size(array.dtype));
}

template <typename T>
std::vector<std::int64_t> copied(const void* elements, std::int64_t count, std::int64_t stride) {
  std::vector<std::int64_t> numbers(static_cast<std::size_t>(count));
  const auto* const from = static_cast<const T*>(elements);
  for (std::int64_t i = 0; i < count; ++i) numbers[static_cast<std::size_t>(i)] = from[i * stride];
  return numbers;
}

/// Of no axis or one.
std::vector<std::int64_t> numbers_of(Argument argument, const Array& array) {
  if (array.empty) return {};
  Buffer memory;
  const void* const elements = host_elements(argument, array, memory);
  const std::int64_t count = array.ndim == 0 ? 1 : array.shape[0];
  if (array.dtype == DType::i64) return copied<std::int64_t>(elements, count, array.strides[0]);
  return copied<std::int32_t>(elements, count, array.strides[0]);
}

[[noreturn]] void fail_dimensions(Argument argument, const Array& array) {
  fail_argument(argument.call, ": ", argument.name, ": shape ", array.shape_list(), " has ",
                array.ndim, " dimensions, takes 1");
}

}  // namespace

void import_indices(Argument argument, PyObject* object, Array& array, Lifetime lifetime) {
  import_array(argument, object, lifetime, {kIndexDTypes, true}, array);
  if (array.boolean) fail_dtype(argument, "bool", kIndexDTypes);
  if (array.dtype == DType::i32 || array.dtype == DType::i64) return;
  fail_dtype(argument, dtype_name(array.dtype), kIndexDTypes);
}

std::vector<std::int64_t> read_indices(Argument argument, nb::handle value) {
  if (!is_array(value)) {
    if (!entries_of(value).is_valid()) fail_type(argument, value, kInts);
    return to_int_list(argument, value);
  }
  Array array;
  import_indices(argument, value.ptr(), array);
  refuse_traced(argument.call, {{argument.name, value.ptr(), array.type.framework}});
  if (array.ndim != 1) fail_dimensions(argument, array);
  return numbers_of(argument, array);
}

IntOrList read_index_numbers(Argument argument, nb::handle value) {
  if (!is_array(value)) return to_int_or_list(argument, value);
  Array array;
  import_indices(argument, value.ptr(), array);
  refuse_traced(argument.call, {{argument.name, value.ptr(), array.type.framework}});
  if (array.ndim > 1) fail_dimensions(argument, array);
  std::vector<std::int64_t> numbers = numbers_of(argument, array);
  if (array.ndim == 0) return {true, numbers[0], {}};
  return {false, 0, std::move(numbers)};
}

}  // namespace metal_sdpa::python
