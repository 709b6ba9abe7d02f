// KernelRegistry and Pipeline.
#include <nanobind/stl/shared_ptr.h>

#include <cmath>

#include "bindings.h"
#include "convert.h"
#include "core/backend.h"
#include "device.h"
#include "interrupts.h"
#include "metal_sdpa/kernel_registry.h"

namespace metal_sdpa::python {
namespace {

constexpr Argument kConstants{"get_pipeline", "constants"};
constexpr const char* kConstantTypes = "a bool, an int, a float or (DType, number)";

/// (DType.u32, 5): where the shader declares another type than the plain number would get.
void set_typed_constant(FunctionConstant& constant, const nb::tuple& typed) {
  if (typed.size() != 2) fail_type(kConstants, typed, kConstantTypes);
  const DType dtype = to_dtype(kConstants, typed[0]);
  if (dtype == DType::u32) {
    constant.value =
        static_cast<std::uint32_t>(to_int_between(kConstants, typed[1], 0, UINT32_MAX));
  } else if (dtype == DType::i32) {
    constant.value =
        static_cast<std::int32_t>(to_int_between(kConstants, typed[1], INT32_MIN, INT32_MAX));
  } else if (dtype == DType::f32) {
    constant.value = static_cast<float>(to_double(kConstants, typed[1]));
  } else {
    fail(ErrorCode::unsupported_dtype, "get_pipeline: constants: ", dtype_name(dtype),
         ", takes u32, i32 or f32");
  }
}

FunctionConstant to_constant(nb::handle index, nb::handle value) {
  FunctionConstant constant;
  constant.index = static_cast<std::uint32_t>(to_int_between(kConstants, index, 0, UINT32_MAX));
  if (PyBool_Check(value.ptr())) {
    constant.value = value.ptr() == Py_True;
  } else if (PyTuple_Check(value.ptr())) {
    set_typed_constant(constant, nb::borrow<nb::tuple>(value));
  } else if (PyIndex_Check(value.ptr())) {
    constant.value =
        static_cast<std::int32_t>(to_int_between(kConstants, value, INT32_MIN, INT32_MAX));
  } else if (PyFloat_Check(value.ptr())) {
    constant.value = static_cast<float>(to_double(kConstants, value));
  } else {
    fail_type(kConstants, value, kConstantTypes);
  }
  return constant;
}

FunctionConstants to_constants(nb::handle value) {
  FunctionConstants constants;
  if (value.is_none()) return constants;
  if (!PyDict_Check(value.ptr())) fail_type(kConstants, value, "a dict of index to value");
  // A copy: __index__ of an entry may change the caller's dict.
  const nb::object copy = nb::steal(PyDict_Copy(value.ptr()));
  if (!copy.is_valid()) nb::raise_python_error();
  for (const auto [index, entry] : nb::borrow<nb::dict>(copy)) {
    constants.push_back(to_constant(index, entry));
  }
  return constants;
}

std::shared_ptr<Pipeline> get_pipeline(const KernelRegistry& registry, nb::handle function,
                                       nb::handle constants, nb::handle library) {
  const std::string name = to_text({"get_pipeline", "function"}, function);
  std::string library_name;
  if (!library.is_none()) library_name = to_text({"get_pipeline", "library"}, library);
  const FunctionConstants values = to_constants(constants);
  std::shared_ptr<Pipeline> pipeline;
  without_gil([&] { pipeline = registry.get_pipeline(name, values, library_name); });
  return pipeline;
}

/// A capsule, or the address of the function (ctypes).
NativeKernel to_native_kernel(nb::handle value) {
  const Argument argument{"register_native", "kernel"};
  constexpr const char* kName = "metal_sdpa.NativeKernel";
  if (PyCapsule_IsValid(value.ptr(), kName)) {
    return reinterpret_cast<NativeKernel>(PyCapsule_GetPointer(value.ptr(), kName));
  }
  if (!PyLong_CheckExact(value.ptr())) {
    fail_type(argument, value, "the address of a NativeKernel, or a capsule of it");
  }
  return reinterpret_cast<NativeKernel>(static_cast<std::uintptr_t>(to_size(argument, value)));
}

}  // namespace

void bind_registry(nb::module_& module) {
  nb::class_<Pipeline>(module, "Pipeline", "A function of a library with its constants set.")
      .def_prop_ro(
          "name", [](const Pipeline& self) { return nb::str(self.name.c_str()); },
          nb::sig("def name(self) -> str"), "The function's name.")
      .def_prop_ro("max_threads_per_threadgroup",
                   [](const Pipeline& self) { return self.max_threads_per_threadgroup; });

  nb::class_<KernelRegistry>(module, "KernelRegistry",
                             "Kernels by name: shader sources, native CPU kernels, and the "
                             "pipelines made from them.\n\nThread-safe. A new registry holds the "
                             "attention kernels of this package.")
      .def(
          "__init__",
          [](KernelRegistry* self, nb::handle device) {
            new (self) KernelRegistry(to_device({"KernelRegistry", "device"}, device));
          },
          nb::arg("device").none(), nb::sig("def __init__(self, device: Device | str) -> None"))
      .def(
          "register_source",
          [](KernelRegistry& self, nb::handle library, nb::handle source) {
            self.register_source(to_text({"register_source", "library"}, library),
                                 to_text({"register_source", "source"}, source));
          },
          nb::arg("library").none(), nb::arg("source").none(),
          nb::sig("def register_source(self, library: str, source: str) -> None"),
          "Adds MSL source under a library name, compiled when first needed. The same name again\n"
          "replaces it and drops every pipeline made from the old source.")
      .def(
          "register_native",
          [](KernelRegistry& self, nb::handle name, nb::handle kernel) {
            self.register_native(to_text({"register_native", "name"}, name),
                                 to_native_kernel(kernel));
          },
          nb::arg("name").none(), nb::arg("kernel").none(),
          nb::sig("def register_native(self, name: str, kernel: Any) -> None"),
          "Gives the CPU device a kernel: the address of a C++ function of type "
          "metal_sdpa::NativeKernel,\nas an int or in a capsule named \"metal_sdpa.NativeKernel\". "
          "Unsupported on Metal.")
      .def("get_pipeline", &get_pipeline, nb::arg("function").none(),
           nb::arg("constants") = nb::none(), nb::arg("library") = nb::none(),
           nb::sig("def get_pipeline(self, function: str, "
                   "constants: Mapping[int, bool | int | float | tuple[DTypeLike, float]] | None = "
                   "None, library: str | None = None) -> Pipeline"),
           "The pipeline of `function`, made once per library, function and constants.\n\n"
           "Of the package's own kernels these are sdpa, sdpa_f16 and sdpa_bf16; what they are "
           "given "
           "by hand\nis checked against their bindings.\n\n"
           "Libraries are searched in order of registration. A bool, int (i32) or float (f32) is a "
           "function\nconstant by index; (DType.u32, 5) where the shader declares another type. "
           "KernelNotFound where\nno library has the function for this device; "
           "ShaderCompilationError with the compiler's log;\nInvalidArgument where two libraries "
           "have it and none is named.")
      .def_prop_ro(
          "device", [](const KernelRegistry& self) { return self.device(); },
          nb::sig("def device(self) -> Device"))
      .def_prop_ro("cached_pipelines", &KernelRegistry::cached_pipelines)
      .def_prop_ro("library_compiles", &KernelRegistry::library_compiles,
                   "Compiles of libraries done so far.");

  module.def(
      "register_sdpa",
      [](nb::handle registry) {
        const Argument argument{"register_sdpa", "registry"};
        register_sdpa(to_object<KernelRegistry>(argument, registry, "a KernelRegistry"));
      },
      nb::arg("registry").none(), nb::sig("def register_sdpa(registry: KernelRegistry) -> None"),
      "Registers the attention kernels; every new registry has done it, and doing it again is "
      "harmless.");
}

}  // namespace metal_sdpa::python
