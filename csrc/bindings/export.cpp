// DLPack capsules.
#include "export.h"

#include <memory>

#include "convert.h"
#include "core/backend.h"

namespace metal_sdpa::python {
namespace {

bool on_metal(const Buffer& buffer) {
  return buffer.storage()->backend->kind() == DeviceKind::metal;
}

/// A tensor and what it points to, in one allocation.
template <typename Managed>
struct Exported {
  Managed managed;
  Buffer buffer;
  std::vector<std::int64_t> strides;
};

std::vector<std::int64_t> packed_strides(const Shape& shape) {
  std::vector<std::int64_t> strides(shape.size(), 1);
  for (std::size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  return strides;
}

template <typename Managed>
Managed* make_managed(const Buffer& buffer) {
  auto exported = std::make_unique<Exported<Managed>>();
  exported->buffer = buffer;
  exported->strides = packed_strides(buffer.shape());
  DLTensor& tensor = exported->managed.tensor;
  if (on_metal(buffer)) {
    tensor.data = buffer.storage()->native_handle();
    tensor.byte_offset = buffer.byte_offset();
    tensor.device = {kDLMetal, 0};
  } else {
    tensor.data = buffer.data();
    tensor.device = {kDLCpu, 0};
  }
  tensor.ndim = static_cast<std::int32_t>(buffer.shape().size());
  tensor.dtype = dlpack_dtype(buffer.dtype());
  // Consumers only read shapes.
  tensor.shape = const_cast<std::int64_t*>(exported->buffer.shape().data());
  tensor.strides = exported->strides.data();
  exported->managed.context = exported.get();
  exported->managed.deleter = [](Managed* self) {
    delete static_cast<Exported<Managed>*>(self->context);
  };
  return &exported.release()->managed;
}

/// Until a consumer takes it over, which renames the capsule, the capsule owns the tensor.
template <typename Managed>
void release_capsule(PyObject* capsule, const char* name) {
  if (!PyCapsule_IsValid(capsule, name)) return;
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule, name));
  managed->deleter(managed);
}

[[noreturn]] void fail_buffer(const std::string& text) {
  PyErr_SetString(PyExc_BufferError, text.c_str());
  nb::raise_python_error();
}

bool wants_versioned(nb::handle max_version) {
  if (max_version.is_none()) return false;
  const std::vector<std::int64_t> version = to_int_list({"__dlpack__", "max_version"}, max_version);
  return !version.empty() && version[0] >= 1;
}

void check_requests(const Buffer& buffer, nb::handle dl_device, nb::handle copy) {
  if (!copy.is_none() && to_bool({"__dlpack__", "copy"}, copy)) {
    fail_buffer("__dlpack__: copy: True, a buffer only shares its memory");
  }
  if (dl_device.is_none()) return;
  const std::vector<std::int64_t> wanted = to_int_list({"__dlpack__", "dl_device"}, dl_device);
  const std::int64_t own = on_metal(buffer) ? kDLMetal : kDLCpu;
  if (wanted != std::vector<std::int64_t>{own, 0}) {
    fail_buffer(text_of("__dlpack__: dl_device: the memory is on device (", own, ", 0)"));
  }
}

}  // namespace

DLDataType dlpack_dtype(DType dtype) noexcept {
  const auto bits = static_cast<std::uint8_t>(dtype_size(dtype) * 8);
  DLTypeCode code = DLTypeCode::UInt;
  if (dtype == DType::f32 || dtype == DType::f16) code = DLTypeCode::Float;
  if (dtype == DType::bf16) code = DLTypeCode::Bfloat;
  if (dtype == DType::i32 || dtype == DType::i64) code = DLTypeCode::Int;
  return {static_cast<std::uint8_t>(code), bits, 1};
}

nb::tuple dlpack_device(const Buffer& buffer) {
  return nb::make_tuple(on_metal(buffer) ? kDLMetal : kDLCpu, 0);
}

DLManagedTensorVersioned* managed_tensor(const Buffer& buffer) {
  auto* managed = make_managed<DLManagedTensorVersioned>(buffer);
  if (buffer.read_only()) managed->flags |= kDLReadOnly;
  return managed;
}

nb::object dlpack_capsule(const Buffer& buffer, nb::handle max_version, nb::handle dl_device,
                          nb::handle copy) {
  check_requests(buffer, dl_device, copy);
  if (wants_versioned(max_version)) {
    return nb::steal(
        PyCapsule_New(managed_tensor(buffer), "dltensor_versioned", [](PyObject* self) {
          release_capsule<DLManagedTensorVersioned>(self, "dltensor_versioned");
        }));
  }
  if (buffer.read_only()) {
    fail_buffer("__dlpack__: read-only memory needs max_version (1, 0) or later");
  }
  return nb::steal(
      PyCapsule_New(make_managed<DLManagedTensor>(buffer), "dltensor",
                    [](PyObject* self) { release_capsule<DLManagedTensor>(self, "dltensor"); }));
}

}  // namespace metal_sdpa::python
