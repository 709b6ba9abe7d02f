// NumPy arrays through __array_struct__: the cheapest way in, and the only one for bfloat16.
#include <bit>

#include "array.h"
#include "errors.h"

namespace metal_sdpa::python {
namespace {

/// numpy.org/doc/stable/reference/arrays.interface.html
struct ArrayInterface {
  int two;  ///< always 2
  int nd;
  char typekind;
  int itemsize;
  int flags;
  Py_intptr_t* shape;
  Py_intptr_t* strides;  ///< in bytes
  void* data;
  PyObject* descr;
};

constexpr int kAligned = 0x100;
constexpr int kNotSwapped = 0x200;
constexpr int kWriteable = 0x400;

std::string dtype_text(PyObject* object) {
  const nb::object dtype = nb::handle(object).attr("dtype");
  return text_or_empty(dtype);
}

/// By the name of the scalar type: that of the dtype is computed by Python code, in 0.7 us.
bool is_bfloat16(PyObject* object) {
  const ArrayNames& names = array_names();
  const nb::object name = nb::handle(object)
                              .attr(nb::handle(names.dtype))
                              .attr(nb::handle(names.type))
                              .attr(nb::handle(names.name));
  return PyUnicode_Check(name.ptr()) &&
         PyUnicode_CompareWithASCIIString(name.ptr(), "bfloat16") == 0;
}

bool find_dtype(const ArrayInterface& interface, PyObject* object, const TakenDTypes& dtypes,
                Array& array) {
  const int size = interface.itemsize;
  DType& dtype = array.dtype;
  switch (interface.typekind) {
    case 'b':
      dtype = DType::u8;
      array.boolean = true;
      return dtypes.booleans;
    case 'f':
      dtype = size == 4 ? DType::f32 : DType::f16;
      return size == 4 || size == 2;
    case 'u':
      dtype = size == 4 ? DType::u32 : size == 2 ? DType::u16 : DType::u8;
      return size == 4 || size == 2 || size == 1;
    case 'i':
      dtype = size == 8 ? DType::i64 : DType::i32;
      return size == 8 || size == 4;
    case 'V':
      dtype = DType::bf16;
      return size == 2 && is_bfloat16(object);
    default:
      return false;
  }
}

void copy_layout(Argument argument, const ArrayInterface& interface, Array& array) {
  if (interface.nd > Array::kMaxDims) {
    fail_argument(argument.call, ": ", argument.name, ": ", interface.nd,
                  " dimensions, takes at most ", Array::kMaxDims);
  }
  array.ndim = interface.nd;
  // Sizes of elements are powers of two, and a division by a variable costs what a check does not.
  const std::int64_t below_size = interface.itemsize - 1;
  const int shift = std::countr_zero(static_cast<unsigned>(interface.itemsize));
  bool empty = false;
  for (int i = 0; i < interface.nd; ++i) {
    const std::int64_t extent = interface.shape[i];
    const std::int64_t stride = interface.strides[i];
    if ((stride & below_size) != 0 && extent > 1) {
      fail_argument(argument.call, ": ", argument.name, ": a stride of ", stride,
                    " bytes is no multiple of the ", interface.itemsize, " bytes of an element");
    }
    empty = empty || extent == 0;
    array.shape[i] = extent;
    array.strides[i] = stride >> shift;
  }
  array.empty = empty;
}

void describe(Argument argument, const ArrayInterface& interface, PyObject* object,
              const TakenDTypes& dtypes, Array& array) {
  if ((interface.flags & kNotSwapped) == 0) {
    fail(ErrorCode::unsupported_dtype, argument.call, ": ", argument.name, ": dtype ",
         dtype_text(object), " is byte-swapped, takes the machine's byte order");
  }
  if (!find_dtype(interface, object, dtypes, array)) {
    fail_dtype(argument, dtype_text(object), dtypes.text);
  }
  if ((interface.flags & kAligned) == 0) {
    fail_argument(argument.call, ": ", argument.name, ": data is not aligned to the ",
                  interface.itemsize, " bytes of an element");
  }
  array.data = interface.data;
  array.read_only = (interface.flags & kWriteable) == 0;
  copy_layout(argument, interface, array);
}

}  // namespace

void import_numpy(Argument argument, PyObject* object, Lifetime lifetime, const TakenDTypes& dtypes,
                  Array& array) {
  const nb::object capsule = nb::steal(PyObject_GetAttr(object, array_names().array_struct));
  const void* pointer = capsule.is_valid() ? PyCapsule_GetPointer(capsule.ptr(), nullptr) : nullptr;
  if (pointer == nullptr) {
    fail(ErrorCode::unsupported, argument.call, ": ", argument.name, ": ",
         type_text(nb::handle(object)), " gives no __array_struct__: ", take_python_error_text());
  }
  const auto* interface = static_cast<const ArrayInterface*>(pointer);
  describe(argument, *interface, object, dtypes, array);
  if (lifetime == Lifetime::owned) array.owner = hold_object(object);
}

}  // namespace metal_sdpa::python
