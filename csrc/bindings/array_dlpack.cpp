// The ways in through DLPack: torch through its C functions, the others through a capsule.
#include <cstdint>

#include "array.h"
#include "dlpack_tensor.h"
#include "errors.h"
#include "hidden_torch.h"

namespace metal_sdpa::python {
namespace {

constexpr const char* kWanted = "an array (NumPy, or any with __dlpack__)";

/// DLManagedTensorVersioned::version.major that is understood.
constexpr std::uint32_t kMajorVersion = 1;

/// torch's own text for a tensor without strides speaks of storage.
void refuse_sparse(Argument argument, PyObject* object) {
  const std::string text = attribute_text(object, "layout");
  if (text.rfind("torch.sparse", 0) != 0) return;
  fail(ErrorCode::unsupported, argument.call, ": ", argument.name, ": a sparse tensor (", text,
       "), takes torch.strided");
}

[[noreturn]] void fail_export(Argument argument, PyObject* object) {
  const std::string reason = take_python_error_text();
  refuse_sparse(argument, object);
  fail(ErrorCode::unsupported, argument.call, ": ", argument.name, ": ",
       type_text(nb::handle(object)), " gives no DLPack tensor: ", reason);
}

// --- the producer
// ----------------------------------------------------------------------------------

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
                    const TakenDTypes& dtypes, Array& array) {
  array.owner = own_managed(managed);
  if (managed->version.major != kMajorVersion) {
    fail(ErrorCode::unsupported, argument.call, ": ", argument.name, ": DLPack version ",
         managed->version.major, ", takes ", kMajorVersion);
  }
  array.read_only = (managed->flags & kDLReadOnly) != 0;
  array.copied = (managed->flags & kDLCopied) != 0;
  describe_tensor(argument, managed->tensor, object, dtypes, array);
}

void take_capsule(Argument argument, PyObject* capsule, PyObject* object, const TakenDTypes& dtypes,
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
  describe_tensor(argument, managed->tensor, object, dtypes, array);
}

/// object.__dlpack__, in the newest form that it understands.
nb::object export_capsule(Argument argument, PyObject* object) {
  nb::object method;
  try {
    method = nb::handle(object).attr("__dlpack__");
    return method(nb::arg("max_version") = nb::make_tuple(1, 1));
  } catch (nb::python_error& error) {
    if (!method.is_valid() || !error.matches(PyExc_TypeError)) {
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

[[noreturn]] void fail_device(Argument argument, PyObject* object, nb::handle device) {
  fail_argument(argument.call, ": ", argument.name, ": __dlpack_device__ of ",
                type_text(nb::handle(object)), " gives ", type_text(device),
                ", takes a pair of ints from 0 up");
}

/// Two ints, of which the first is the device type.
std::int64_t read_device(Argument argument, PyObject* object, const nb::object& device) {
  const bool is_pair = PyTuple_Check(device.ptr()) && PyTuple_Size(device.ptr()) == 2;
  if (!is_pair) fail_device(argument, object, device);
  std::int64_t type = -1;
  std::int64_t id = -1;
  const nb::tuple pair = nb::borrow<nb::tuple>(device);
  const bool are_ints = find_int64(pair[0], type) && find_int64(pair[1], id);
  if (!are_ints || type < 0 || id < 0) fail_device(argument, object, device);
  return type;
}

void check_producer_device(Argument argument, PyObject* object) {
  nb::object device;
  try {
    const nb::object method = nb::getattr(nb::handle(object), "__dlpack_device__", nb::none());
    if (method.is_none()) return;
    device = method();
  } catch (nb::python_error& error) {
    error.restore();
    fail_export(argument, object);
  }
  check_device_type(argument, read_device(argument, object, device));
}

void import_capsule(Argument argument, PyObject* object, const TakenDTypes& dtypes, Array& array) {
  if (!nb::hasattr(nb::handle(object), "__dlpack__")) fail_type(argument, object, kWanted);
  if (PyType_Check(object)) fail_type(argument, object, kWanted);
  nb::object source = nb::borrow(object);
  if (array.type.framework == Framework::torch && requires_gradients(object)) {
    source = source.attr("detach")();
  }
  check_producer_device(argument, source.ptr());
  const nb::object capsule = export_capsule(argument, source.ptr());
  take_capsule(argument, capsule.ptr(), object, dtypes, array);
}

// --- the C functions ----------------------------------------------------------------------------

void import_exchange(Argument argument, PyObject* object, Lifetime lifetime,
                     const TakenDTypes& dtypes, Array& array) {
  const DLExchangeApi& api = *array.type.exchange;
  if (lifetime == Lifetime::borrowed && api.tensor_from_object != nullptr) {
    DLTensor tensor;
    if (api.tensor_from_object(object, &tensor) != 0) fail_export(argument, object);
    // The Metal form of a tensor needs its buffer and offset, which only the managed way tells.
    if (tensor.device.device_type == kDLCpu) {
      describe_tensor(argument, tensor, object, dtypes, array);
      return;
    }
    check_device_type(argument, tensor.device.device_type);
  }
  DLManagedTensorVersioned* managed = nullptr;
  if (api.managed_from_object(object, &managed) != 0) fail_export(argument, object);
  if (managed == nullptr) fail_argument(argument.call, ": ", argument.name, ": gives no tensor");
  take_versioned(argument, managed, object, dtypes, array);
}

}  // namespace

void import_dlpack(Argument argument, PyObject* object, Lifetime lifetime,
                   const TakenDTypes& dtypes, Array& array) {
  if (array.type.exchange != nullptr) {
    import_exchange(argument, object, lifetime, dtypes, array);
  } else {
    import_capsule(argument, object, dtypes, array);
  }
  if (array.on_metal) finish_producer(array.type.framework);
}

}  // namespace metal_sdpa::python
