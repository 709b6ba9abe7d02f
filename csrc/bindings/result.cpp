// Results: numpy.empty, a framework's DLPack allocator, or memory of ours through its from_dlpack.
#include "result.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "export.h"

namespace metal_sdpa::python {
namespace {

PyObject* g_numpy_empty = nullptr;
PyObject* g_numpy_float32 = nullptr;

/// Axes of size 1 stay where they are; the others sort among themselves. The last one is innermost.
MemoryOrder order_of(const Array& like) {
  MemoryOrder order;
  if (like.empty) return order;
  int slots[3];
  int count = 0;
  for (int axis = 0; axis + 1 < like.ndim; ++axis) {
    if (like.shape[axis] > 1) slots[count++] = axis;
  }
  const auto stride = [&](int axis) { return std::abs(like.strides[axis]); };
  for (int i = 1; i < count; ++i) {
    for (int j = i; j > 0; --j) {
      int& outer = order.axes[static_cast<std::size_t>(slots[j - 1])];
      int& inner = order.axes[static_cast<std::size_t>(slots[j])];
      if (stride(outer) >= stride(inner)) break;
      std::swap(outer, inner);
      order.logical = false;
    }
  }
  return order;
}

void set_packed(Array& array, const std::int64_t* shape, int ndim, const MemoryOrder& order) {
  array.ndim = ndim;
  std::copy_n(shape, ndim, array.shape);
  std::int64_t stride = 1;
  for (int i = ndim - 1; i >= 0; --i) {
    const int axis = order.axes[static_cast<std::size_t>(i)];
    array.strides[axis] = stride;
    stride *= shape[axis];
    array.empty = array.empty || shape[axis] == 0;
  }
  for (int i = ndim; i < 4; ++i) {  // copies and layouts see [B, Hq, L, 1]
    array.shape[i] = 1;
    array.strides[i] = 1;
  }
}

nb::object shape_tuple(const std::int64_t* shape, int ndim) {
  nb::object tuple = nb::steal(PyTuple_New(ndim));
  if (!tuple.is_valid()) nb::raise_python_error();
  for (int i = 0; i < ndim; ++i) PyTuple_SetItem(tuple.ptr(), i, PyLong_FromLongLong(shape[i]));
  return tuple;
}

/// Extents outermost in memory first.
std::array<std::int64_t, 4> memory_shape(const Array& array, const MemoryOrder& order) {
  std::array<std::int64_t, 4> shape{};
  for (std::size_t i = 0; i < 4; ++i) shape[i] = array.shape[order.axes[i]];
  return shape;
}

/// An array whose axes stand in the order of memory, seen in logical order. torch calls it permute.
nb::object in_logical_order(nb::handle array, const MemoryOrder& order, int ndim,
                            const char* method) {
  int places[4];
  for (int i = 0; i < 4; ++i) places[order.axes[static_cast<std::size_t>(i)]] = i;
  if (ndim == 3) return array.attr(method)(places[0], places[1], places[2]);
  return array.attr(method)(places[0], places[1], places[2], places[3]);
}

// --- NumPy --------------------------------------------------------------------------------------

void make_numpy(Argument argument, PyObject* like_object, DType dtype, Result& result) {
  const bool same = dtype == result.array.dtype;
  const std::array<std::int64_t, 4> shape = memory_shape(result.array, result.order);
  const nb::object own = same ? nb::steal(PyObject_GetAttr(like_object, array_names().dtype))
                              : nb::borrow<nb::object>(nb::handle(g_numpy_float32));
  const nb::object extents = shape_tuple(shape.data(), result.array.ndim);
  PyObject* made = PyObject_CallFunctionObjArgs(g_numpy_empty, extents.ptr(), own.ptr(), nullptr);
  if (made == nullptr) nb::raise_python_error();
  result.object = nb::steal(made);
  Array memory;
  import_array(argument, made, Lifetime::borrowed, "", memory);
  result.array.data = memory.data;
  if (result.order.logical) return;
  result.object = in_logical_order(result.object, result.order, result.array.ndim, "transpose");
}

// --- a framework's own allocator ----------------------------------------------------------------

void set_error(void*, const char* kind, const char* text) {
  const bool memory = std::string_view(kind) == "MemoryError";
  PyErr_SetString(memory ? PyExc_MemoryError : PyExc_RuntimeError, text);
}

void make_exchange(const DLExchangeApi& api, DType dtype, Result& result) {
  std::array<std::int64_t, 4> shape = memory_shape(result.array, result.order);
  DLTensor prototype;
  prototype.device = {kDLCpu, 0};
  prototype.ndim = result.array.ndim;
  prototype.dtype = dlpack_dtype(dtype);
  prototype.shape = shape.data();
  DLManagedTensorVersioned* managed = nullptr;
  if (api.allocate(&prototype, &managed, nullptr, set_error) != 0) nb::raise_python_error();
  result.array.data = static_cast<char*>(managed->tensor.data) + managed->tensor.byte_offset;
  void* object = nullptr;
  if (api.object_from_managed(managed, &object) != 0) nb::raise_python_error();
  result.object = nb::steal(static_cast<PyObject*>(object));
  if (result.order.logical) return;
  result.object = in_logical_order(result.object, result.order, result.array.ndim, "permute");
}

bool can_allocate(const ArrayType& type) {
  return type.exchange != nullptr && type.exchange->allocate != nullptr &&
         type.exchange->object_from_managed != nullptr;
}

// --- our memory ---------------------------------------------------------------------------------

/// There is no memory of no bytes: an array without elements gets one that it does not use.
Buffer empty_buffer(const Device& device, DType dtype, const Array& array,
                    const MemoryOrder& order) {
  if (!array.empty) {
    const std::array<std::int64_t, 4> shape = memory_shape(array, order);
    return device.empty(Shape(shape.data(), shape.data() + array.ndim), dtype);
  }
  const Buffer unused = device.empty({1}, dtype);
  return Buffer(unused.storage(), 0, unused.byte_len(), dtype, array.shape_list());
}

void make_buffer(const Device& device, DType dtype, Result& result) {
  result.buffer = empty_buffer(device, dtype, result.array, result.order);
  result.array.data = result.buffer.data();
  if (device.kind() != DeviceKind::metal) return;
  result.array.on_metal = true;
}

/// The function that makes an array of the framework from a DLPack object.
nb::object importer_of(Argument argument, Framework framework, PyObject* like) {
  switch (framework) {
    case Framework::torch:
      return nb::module_::import_("torch").attr("from_dlpack");
    case Framework::jax:
      return nb::module_::import_("jax.dlpack").attr("from_dlpack");
    case Framework::mlx:
      return nb::module_::import_("mlx.core").attr("array");
    default:
      break;
  }
  const nb::handle handle(like);
  if (nb::hasattr(handle, "__array_namespace__")) {
    return handle.attr("__array_namespace__")().attr("from_dlpack");
  }
  fail(ErrorCode::unsupported, argument.call, ": ", argument.name, ": ", type_text(handle),
       " cannot be made from DLPack; give `out`, or arrays of another framework");
}

void make_ordered(Argument argument, const Device& device, const Array& like, PyObject* like_object,
                  DType dtype, const std::int64_t* shape, int ndim, Result& result) {
  result.array.type = like.type;
  result.array.dtype = like.dtype;
  result.ndim = ndim;
  set_packed(result.array, shape, ndim, result.order);
  if (like.type.framework == Framework::numpy) {
    make_numpy(argument, like_object, dtype, result);
  } else if (!like.on_metal && can_allocate(like.type)) {
    make_exchange(*like.type.exchange, dtype, result);
  } else {
    make_buffer(like.on_metal ? device : Device("cpu"), dtype, result);
  }
  result.array.dtype = dtype;
}

}  // namespace

nb::object Result::take(Argument argument, PyObject* like) {
  if (object.is_valid()) return std::move(object);
  const nb::object holder = nb::cast(buffer);
  if (nb::isinstance<Buffer>(like)) return holder;
  nb::object made = importer_of(argument, array.type.framework, like)(holder);
  if (order.logical) return made;
  const bool is_torch = array.type.framework == Framework::torch;
  return in_logical_order(made, order, ndim, is_torch ? "permute" : "transpose");
}

void make_result(Argument argument, const Device& device, const Array& like, PyObject* like_object,
                 DType dtype, const std::int64_t* shape, Result& result) {
  // Of arrays of other libraries it is not known how their axes are put into another order.
  if (like.type.framework != Framework::other) result.order = order_of(like);
  make_ordered(argument, device, like, like_object, dtype, shape, like.ndim, result);
}

void make_packed_result(Argument argument, const Device& device, const Array& like,
                        PyObject* like_object, DType dtype, const std::int64_t* shape, int ndim,
                        Result& result) {
  make_ordered(argument, device, like, like_object, dtype, shape, ndim, result);
}

void init_results() {
  const nb::module_ numpy = nb::module_::import_("numpy");
  g_numpy_empty = nb::object(numpy.attr("empty")).release().ptr();
  g_numpy_float32 = nb::object(numpy.attr("dtype")("float32")).release().ptr();
}

}  // namespace metal_sdpa::python
