// Device and the number of threads.
#include "device.h"

#include "bindings.h"
#include "core/layout.h"
#include "hidden_state.h"
#include "interrupts.h"

namespace metal_sdpa::python {
namespace {

constexpr const char* kAllDTypes = "f32, f16, bf16, u8, u16, u32, i32 or i64";

void require_packed(Argument argument, const Array& array) {
  std::int64_t stride = 1;
  for (int i = array.ndim - 1; i >= 0; --i) {
    if (array.shape[i] != 1 && array.strides[i] != stride) {
      fail_argument(argument.call, ": ", argument.name, ": dimension ", i, " has a stride of ",
                    array.strides[i], " elements, takes packed row-major arrays");
    }
    stride *= array.shape[i];
  }
}

Device make_device(nb::handle kind, nb::handle threads, nb::handle isa) {
  DeviceOptions options;
  if (!threads.is_none()) {
    options.threads = static_cast<int>(to_int_between({"Device", "threads"}, threads, 1, 1024));
  }
  if (!isa.is_none()) options.isa = to_text({"Device", "isa"}, isa);
  const std::string name = to_text({"Device", "kind"}, kind);
  return Device(name, options);
}

Buffer wrap(const Device& device, nb::handle object, nb::handle dtype) {
  const Argument argument{"wrap", "array"};
  Array array;
  import_array(argument, object.ptr(), Lifetime::owned, kAllDTypes, array);
  refuse_traced("wrap", {{"array", object.ptr(), array.type.framework}});
  if (array.copied) fail_argument("wrap: array: gives a copy of its memory, takes one to share");
  DType wanted = array.dtype;
  if (!dtype.is_none()) wanted = to_dtype({"wrap", "dtype"}, dtype);
  if (dtype_size(wanted) != dtype_size(array.dtype)) {
    fail(ErrorCode::unsupported_dtype, "wrap: dtype: ", dtype_name(wanted), " for an array of ",
         dtype_name(array.dtype), ", takes one of the same size");
  }
  return wrap_array(device, argument, array, wanted);
}

Buffer alloc_buffer(const Device& device, nb::handle byte_len, nb::handle dtype, nb::handle shape) {
  return device.alloc_buffer(to_size({"alloc_buffer", "byte_len"}, byte_len),
                             to_dtype({"alloc_buffer", "dtype"}, dtype),
                             to_shape({"alloc_buffer", "shape"}, shape));
}

std::string describe(const Device& device) {
  return text_of("Device(\"", device_kind_name(device.kind()), "\", ", device.name(), ")");
}

void bind_limits(nb::module_& module) {
  nb::class_<DeviceLimits>(module, "DeviceLimits", "What a device can take; sizes in bytes.")
      .def_ro("max_buffer_bytes", &DeviceLimits::max_buffer_bytes)
      .def_ro("max_threads_per_threadgroup", &DeviceLimits::max_threads_per_threadgroup)
      .def_ro("max_threadgroup_memory", &DeviceLimits::max_threadgroup_memory)
      .def_ro("max_head_dim", &DeviceLimits::max_head_dim, "For D and Dv.")
      .def_ro("max_inline_bytes", &DeviceLimits::max_inline_bytes, "Of one bytes binding.")
      .def_ro("max_binding_index", &DeviceLimits::max_binding_index)
      .def_ro("max_threadgroup_memory_index", &DeviceLimits::max_threadgroup_memory_index);
}

void bind_memory(nb::class_<Device>& device) {
  device
      .def("alloc_buffer", &alloc_buffer, nb::arg("byte_len").none(), nb::arg("dtype").none(),
           nb::arg("shape").none(),
           nb::sig("def alloc_buffer(self, byte_len: int, dtype: DTypeLike, "
                   "shape: Sequence[int]) -> Buffer"),
           "Zero-filled memory at a 128-byte boundary.\n\nInvalidArgument where `byte_len` is 0 or "
           "is not the size of `shape`; BufferAllocationError\nwhere the device has no room.")
      .def(
          "empty",
          [](const Device& self, nb::handle shape, nb::handle dtype) {
            return self.empty(to_shape({"empty", "shape"}, shape),
                              to_dtype({"empty", "dtype"}, dtype));
          },
          nb::arg("shape").none(), nb::arg("dtype").none(),
          nb::sig("def empty(self, shape: Sequence[int], dtype: DTypeLike) -> Buffer"),
          "`alloc_buffer` with the byte length that `shape` and `dtype` need.")
      .def(
          "wrap", &wrap, nb::arg("array").none(), nb::kw_only(), nb::arg("dtype") = nb::none(),
          nb::sig("def wrap(self, array: Array, *, dtype: DTypeLike | None = None) -> Buffer"),
          "The memory of a packed row-major array, never a copy; the array stays alive with the "
          "Buffer.\n\n`dtype` reads the elements as another dtype of the same size (uint16 bits as "
          "bf16).\nMetal takes Metal arrays, and page-aligned host memory of whole pages.\n"
          "InvalidArgument for other layouts, UnsupportedDType for dtypes without a DType,\n"
          "Unsupported for memory of other devices.");
}

void bind_threads(nb::module_& module) {
  module.def("get_num_threads", &get_num_threads,
             "Threads that CPU work uses unless its Device says otherwise: at first the affinity "
             "mask capped\nby the cgroup quota, or METAL_SDPA_NUM_THREADS as it was at import.");
  module.def(
      "set_num_threads",
      [](nb::handle n_threads) {
        const Argument argument{"set_num_threads", "n_threads"};
        set_num_threads(static_cast<int>(to_int_between(argument, n_threads, 1, 1024)));
      },
      nb::arg("n_threads").none(), nb::sig("def set_num_threads(n_threads: int) -> None"),
      "1 to 1024; results do not depend on it.");
}

}  // namespace

Device to_device(Argument argument, nb::handle value) {
  if (nb::isinstance<Device>(value)) return nb::cast<Device&>(value);
  if (!PyUnicode_Check(value.ptr())) fail_type(argument, value, "a Device or the name of a kind");
  return Device(to_text(argument, value));
}

Buffer wrap_array(const Device& device, Argument argument, const Array& array, DType dtype) {
  if (array.empty) {
    fail_argument(argument.call, ": ", argument.name, ": shape ", array.shape_list(),
                  " has no element");
  }
  require_packed(argument, array);
  const std::size_t byte_len = shape_byte_len(array.shape_list(), dtype, argument.call);
  if (array.on_metal) {
    return device.wrap_native(array.data, array.byte_offset, byte_len, dtype, array.shape_list(),
                              array.owner);
  }
  const HostMemory memory{array.data, byte_len, array.read_only, array.owner};
  return device.wrap(memory, dtype, array.shape_list());
}

void bind_device(nb::module_& module) {
  bind_limits(module);
  nb::class_<Device> device(
      module, "Device",
      "A handle of the CPU or of the Apple GPU. Two handles of one kind are "
      "the same device.\n\n`kind` is \"auto\" (Metal where there is one, else "
      "the CPU), \"metal\" or \"cpu\". `threads` and\n`isa` hold for CPU work "
      "through this handle. DeviceNotFound where there is no such device.");
  device
      .def(
          "__init__",
          [](Device* self, nb::handle kind, nb::handle threads, nb::handle isa) {
            new (self) Device(make_device(kind, threads, isa));
          },
          nb::arg("kind").none() = "auto", nb::kw_only(), nb::arg("threads") = nb::none(),
          nb::arg("isa") = nb::none(),
          nb::sig("def __init__(self, kind: str = \"auto\", *, threads: int | None = None, "
                  "isa: str | None = None) -> None"))
      .def_prop_ro(
          "kind", [](const Device& self) { return device_kind_name(self.kind()); },
          nb::sig("def kind(self) -> str"), "\"cpu\" or \"metal\".")
      .def_prop_ro(
          "name", [](const Device& self) { return nb::str(self.name().c_str()); },
          nb::sig("def name(self) -> str"), "The processor's own name.")
      .def_prop_ro(
          "limits", [](const Device& self) { return self.limits(); },
          nb::sig("def limits(self) -> DeviceLimits"))
      .def_prop_ro(
          "library_origin",
          [](const Device& self) { return nb::str(self.library_origin().c_str()); },
          nb::sig("def library_origin(self) -> str"),
          "Where the kernels come from: \"metallib PATH\", \"embedded source\"; empty: built in.")
      .def(
          "synchronize", [](const Device& self) { without_gil([&self] { self.synchronize(); }); },
          "Waits for everything committed to the device before the call; raises the first error "
          "that nobody\nwaited for. Ctrl-C cancels what this thread committed, and nothing else.")
      .def(
          "command_encoder", [](const Device& self) { return self.command_encoder(); },
          "A fresh CommandEncoder; one-shot, for one thread at a time.")
      .def(
          "__eq__",
          [](const Device& self, nb::handle other) {
            return nb::isinstance<Device>(other) && self == nb::cast<Device&>(other);
          },
          nb::arg("other").none(), nb::sig("def __eq__(self, other: object) -> bool"))
      .def("__hash__",
           [](const Device& self) { return std::hash<const void*>()(self.backend().get()); })
      .def("__repr__", &describe);
  bind_memory(device);
  bind_threads(module);
}

}  // namespace metal_sdpa::python
