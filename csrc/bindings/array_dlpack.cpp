// Everything that speaks DLPack: torch through its C functions, the others through a capsule.
#include <algorithm>
#include <optional>

#include "array.h"
#include "errors.h"

namespace metal_sdpa::python {
namespace {

constexpr const char* kWanted = "an array (NumPy, or any with __dlpack__)";

bool find_dtype(const DLDataType& type, DType& dtype) {
  if (type.lanes != 1) return false;
  switch (static_cast<DLTypeCode>(type.code)) {
    case DLTypeCode::Float:
      dtype = type.bits == 32 ? DType::f32 : DType::f16;
      return type.bits == 32 || type.bits == 16;
    case DLTypeCode::Bfloat:
      dtype = DType::bf16;
      return type.bits == 16;
    case DLTypeCode::UInt:
      dtype = type.bits == 32 ? DType::u32 : type.bits == 16 ? DType::u16 : DType::u8;
      return type.bits == 32 || type.bits == 16 || type.bits == 8;
    case DLTypeCode::Int:
      dtype = DType::i32;
      return type.bits == 32;
    default:
      return false;
  }
}

const char* device_name(std::int32_t device_type) {
  switch (device_type) {
    case 2:
    case 13:
      return "CUDA";
    case 3:
      return "CUDA host";
    case 10:
    case 11:
      return "ROCm";
    case 14:
      return "oneAPI";
    default:
      return "another";
  }
}

void check_device(Argument argument, std::int32_t device_type) {
  // Pinned host memory is host memory.
  if (device_type == kDLCpu || device_type == kDLMetal || device_type == 3 || device_type == 11) {
    return;
  }
  fail(ErrorCode::unsupported, argument.call, ": ", argument.name, ": memory of a ",
       device_name(device_type), " device (DLPack device type ", device_type,
       "), takes host memory or Metal");
}

std::string dtype_text(PyObject* object) {
  const nb::object dtype = nb::getattr(nb::handle(object), "dtype", nb::none());
  return nb::cast<std::string>(nb::str(nb::handle(dtype)));
}

void copy_layout(const DLTensor& tensor, Array& array) {
  array.ndim = tensor.ndim;
  std::copy_n(tensor.shape, tensor.ndim, array.shape);
  if (tensor.strides != nullptr) {
    std::copy_n(tensor.strides, tensor.ndim, array.strides);
    return;
  }
  std::int64_t stride = 1;
  for (int i = tensor.ndim - 1; i >= 0; --i) {
    array.strides[i] = stride;
    stride *= array.shape[i];
  }
}

void describe(Argument argument, const DLTensor& tensor, PyObject* object, const char* dtypes,
              Array& array) {
  check_device(argument, tensor.device.device_type);
  if (!find_dtype(tensor.dtype, array.dtype)) fail_dtype(argument, dtype_text(object), dtypes);
  if (tensor.ndim > Array::kMaxDims) {
    fail_argument(argument.call, ": ", argument.name, ": ", tensor.ndim,
                  " dimensions, takes at most ", Array::kMaxDims);
  }
  copy_layout(tensor, array);
  array.on_metal = tensor.device.device_type == kDLMetal;
  array.byte_offset = array.on_metal ? tensor.byte_offset : 0;
  const std::uint64_t skip = array.on_metal ? 0 : tensor.byte_offset;
  array.data = tensor.data == nullptr ? nullptr : static_cast<char*>(tensor.data) + skip;
  const bool host = !array.on_metal;
  if (host && reinterpret_cast<std::uintptr_t>(array.data) % dtype_size(array.dtype) != 0) {
    fail_argument(argument.call, ": ", argument.name, ": data is not aligned to the ",
                  dtype_size(array.dtype), " bytes of an element");
  }
}

/// torch's own text for a tensor without strides speaks of storage.
void refuse_sparse(Argument argument, PyObject* object) {
  const nb::object layout = nb::getattr(nb::handle(object), "layout", nb::none());
  const std::string text = nb::cast<std::string>(nb::str(nb::handle(layout)));
  if (text.rfind("torch.sparse", 0) != 0) return;
  fail(ErrorCode::unsupported, argument.call, ": ", argument.name, ": a sparse tensor (", text,
       "), takes torch.strided");
}

[[noreturn]] void fail_export(Argument argument, PyObject* object) {
  // The first line says what is wrong; torch appends its C++ stack.
  std::string reason = take_python_error_text();
  reason = reason.substr(0, reason.find('\n'));
  refuse_sparse(argument, object);
  fail(ErrorCode::unsupported, argument.call, ": ", argument.name, ": ",
       type_text(nb::handle(object)), " gives no DLPack tensor: ", reason);
}

// --- torch --------------------------------------------------------------------------------------

/// Whether grad mode is on; asked only where a tensor requires gradients.
bool grad_mode_is_on() {
  return nb::cast<bool>(nb::module_::import_("torch").attr("is_grad_enabled")());
}

/// True where the tensor requires gradients (and grad mode is off: else Unsupported).
bool check_gradients(Argument argument, PyObject* object) {
  const nb::object flag = nb::steal(PyObject_GetAttr(object, array_names().requires_grad));
  if (!flag.is_valid()) nb::raise_python_error();
  if (flag.ptr() != Py_True) return false;
  if (grad_mode_is_on()) {
    fail(ErrorCode::unsupported, argument.call, ": ", argument.name,
         ": requires gradients, but this is forward only; takes it under torch.no_grad() or after "
         "detach()");
  }
  return true;
}

/// Waits for what the framework has in its own queue: DLPack's Metal type carries no stream. MLX
/// evaluated the array when it exported it.
void finish_producer(Framework framework) {
  if (framework == Framework::torch) {
    nb::module_::import_("torch").attr("mps").attr("synchronize")();
  } else if (framework == Framework::mlx) {
    nb::module_::import_("mlx.core").attr("synchronize")();
  }
}

// --- capsules -----------------------------------------------------------------------------------

template <typename Managed>
std::shared_ptr<void> own_managed(Managed* managed) {
  return std::shared_ptr<void>(managed, [](Managed* held) {
    if (held->deleter == nullptr || !Py_IsInitialized()) return;
    const PyGILState_STATE state = PyGILState_Ensure();  // deleters may call Python
    held->deleter(held);
    PyGILState_Release(state);
  });
}

void take_versioned(Argument argument, DLManagedTensorVersioned* managed, PyObject* object,
                    const char* dtypes, Array& array) {
  array.owner = own_managed(managed);
  if (managed->version.major != 1) {
    fail(ErrorCode::unsupported, argument.call, ": ", argument.name, ": DLPack version ",
         managed->version.major, ", takes 1");
  }
  array.read_only = (managed->flags & kDLReadOnly) != 0;
  describe(argument, managed->tensor, object, dtypes, array);
}

void take_capsule(Argument argument, PyObject* capsule, PyObject* object, const char* dtypes,
                  Array& array) {
  if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
    auto* managed =
        static_cast<DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule, "dltensor_versioned"));
    PyCapsule_SetName(capsule, "used_dltensor_versioned");
    take_versioned(argument, managed, object, dtypes, array);
    return;
  }
  if (!PyCapsule_IsValid(capsule, "dltensor")) {
    fail_type(argument, capsule, "a DLPack capsule from __dlpack__");
  }
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
  PyCapsule_SetName(capsule, "used_dltensor");
  array.owner = own_managed(managed);
  // Capsules of old cannot say so: arrays that nothing may write are known by their framework.
  array.read_only = array.type.framework == Framework::jax;
  describe(argument, managed->tensor, object, dtypes, array);
}

/// object.__dlpack__, in the newest form that it understands.
nb::object export_capsule(Argument argument, PyObject* object) {
  const nb::object method = nb::handle(object).attr("__dlpack__");
  try {
    return method(nb::arg("max_version") = nb::make_tuple(1, 1));
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_TypeError)) {
      error.restore();
      fail_export(argument, object);
    }
  }
  try {
    return method();
  } catch (nb::python_error& error) {
    error.restore();
    fail_export(argument, object);
  }
}

void check_producer_device(Argument argument, PyObject* object) {
  const nb::object method = nb::getattr(nb::handle(object), "__dlpack_device__", nb::none());
  if (method.is_none()) return;
  const nb::object device = method();
  check_device(argument, static_cast<std::int32_t>(to_int64(argument, device[nb::int_(0)])));
}

void import_capsule(Argument argument, PyObject* object, const char* dtypes, Array& array) {
  if (!nb::hasattr(nb::handle(object), "__dlpack__")) fail_type(argument, object, kWanted);
  if (PyType_Check(object)) fail_type(argument, object, kWanted);
  nb::object source = nb::borrow(object);
  if (array.type.framework == Framework::torch && check_gradients(argument, object)) {
    source = source.attr("detach")();
  }
  check_producer_device(argument, source.ptr());
  const nb::object capsule = export_capsule(argument, source.ptr());
  take_capsule(argument, capsule.ptr(), object, dtypes, array);
}

// --- the C functions ----------------------------------------------------------------------------

void import_exchange(Argument argument, PyObject* object, Lifetime lifetime, const char* dtypes,
                     Array& array) {
  const DLExchangeApi& api = *array.type.exchange;
  if (array.type.framework == Framework::torch) check_gradients(argument, object);
  if (lifetime == Lifetime::borrowed && api.tensor_from_object != nullptr) {
    DLTensor tensor;
    if (api.tensor_from_object(object, &tensor) != 0) fail_export(argument, object);
    // The Metal form of a tensor needs its buffer and offset, which only the managed way tells.
    if (tensor.device.device_type == kDLCpu) {
      describe(argument, tensor, object, dtypes, array);
      return;
    }
    check_device(argument, tensor.device.device_type);
  }
  DLManagedTensorVersioned* managed = nullptr;
  if (api.managed_from_object(object, &managed) != 0) fail_export(argument, object);
  take_versioned(argument, managed, object, dtypes, array);
}

}  // namespace

void import_dlpack(Argument argument, PyObject* object, Lifetime lifetime, const char* dtypes,
                   Array& array) {
  if (array.type.exchange != nullptr) {
    import_exchange(argument, object, lifetime, dtypes, array);
  } else {
    import_capsule(argument, object, dtypes, array);
  }
  if (array.on_metal) finish_producer(array.type.framework);
}

}  // namespace metal_sdpa::python
