// Results: numpy.empty, a framework's DLPack allocator, or memory of ours through its from_dlpack.
#include "result.h"

#include <algorithm>

#include "export.h"

namespace metal_sdpa::python {
namespace {

PyObject* g_numpy_empty = nullptr;
PyObject* g_numpy_float32 = nullptr;

void set_packed(Array& array, const std::int64_t* shape, int ndim) {
  array.ndim = ndim;
  std::copy_n(shape, ndim, array.shape);
  std::int64_t stride = 1;
  for (int i = ndim - 1; i >= 0; --i) {
    array.strides[i] = stride;
    stride *= shape[i];
    array.empty = array.empty || shape[i] == 0;
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

// --- NumPy --------------------------------------------------------------------------------------

void make_numpy(Argument argument, PyObject* like_object, DType dtype, const std::int64_t* shape,
                int ndim, Result& result) {
  const bool same = dtype == result.array.dtype;
  const nb::object own = same ? nb::steal(PyObject_GetAttr(like_object, array_names().dtype))
                              : nb::borrow<nb::object>(nb::handle(g_numpy_float32));
  const nb::object extents = shape_tuple(shape, ndim);
  PyObject* made = PyObject_CallFunctionObjArgs(g_numpy_empty, extents.ptr(), own.ptr(), nullptr);
  if (made == nullptr) nb::raise_python_error();
  result.object = nb::steal(made);
  Array memory;
  import_array(argument, made, Lifetime::borrowed, "", memory);
  result.array.data = memory.data;
}

// --- a framework's own allocator ----------------------------------------------------------------

void set_error(void*, const char* kind, const char* text) {
  const bool memory = std::string_view(kind) == "MemoryError";
  PyErr_SetString(memory ? PyExc_MemoryError : PyExc_RuntimeError, text);
}

void make_exchange(const DLExchangeApi& api, DType dtype, std::int64_t* shape, int ndim,
                   Result& result) {
  DLTensor prototype;
  prototype.device = {kDLCpu, 0};
  prototype.ndim = ndim;
  prototype.dtype = dlpack_dtype(dtype);
  prototype.shape = shape;
  DLManagedTensorVersioned* managed = nullptr;
  if (api.allocate(&prototype, &managed, nullptr, set_error) != 0) nb::raise_python_error();
  result.array.data = static_cast<char*>(managed->tensor.data) + managed->tensor.byte_offset;
  void* object = nullptr;
  if (api.object_from_managed(managed, &object) != 0) nb::raise_python_error();
  result.object = nb::steal(static_cast<PyObject*>(object));
}

bool can_allocate(const ArrayType& type) {
  return type.exchange != nullptr && type.exchange->allocate != nullptr &&
         type.exchange->object_from_managed != nullptr;
}

// --- our memory ---------------------------------------------------------------------------------

/// There is no memory of no bytes: an array without elements gets one that it does not use.
Buffer empty_buffer(const Device& device, DType dtype, const Array& array) {
  if (!array.empty) return device.empty(array.shape_list(), dtype);
  const Buffer unused = device.empty({1}, dtype);
  return Buffer(unused.storage(), 0, unused.byte_len(), dtype, array.shape_list());
}

void make_buffer(const Device& device, DType dtype, Result& result) {
  result.buffer = empty_buffer(device, dtype, result.array);
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

}  // namespace

nb::object Result::take(Argument argument, PyObject* like) {
  if (object.is_valid()) return std::move(object);
  const nb::object holder = nb::cast(buffer);
  if (nb::isinstance<Buffer>(like)) return holder;
  return importer_of(argument, array.type.framework, like)(holder);
}

void make_result(Argument argument, const Device& device, const Array& like, PyObject* like_object,
                 DType dtype, const std::int64_t* shape, int ndim, Result& result) {
  result.array.type = like.type;
  result.array.dtype = like.dtype;
  set_packed(result.array, shape, ndim);
  if (like.type.framework == Framework::numpy) {
    make_numpy(argument, like_object, dtype, shape, ndim, result);
  } else if (!like.on_metal && can_allocate(like.type)) {
    make_exchange(*like.type.exchange, dtype, result.array.shape, ndim, result);
  } else {
    make_buffer(like.on_metal ? device : Device("cpu"), dtype, result);
  }
  result.array.dtype = dtype;
}

void init_results() {
  const nb::module_ numpy = nb::module_::import_("numpy");
  g_numpy_empty = nb::object(numpy.attr("empty")).release().ptr();
  g_numpy_float32 = nb::object(numpy.attr("dtype")("float32")).release().ptr();
}

}  // namespace metal_sdpa::python
