// Checks of what frameworks keep beside an array's memory.
#include "hidden_state.h"

#include <array>

#include "hidden_mlx.h"
#include "hidden_torch.h"

namespace metal_sdpa::python {
namespace {

constexpr std::size_t kMostArrays = 8;  // of one call

bool same_attribute(nb::handle type, nb::handle base, const char* name) {
  return nb::getattr(type, name, nb::none()).is(nb::getattr(base, name, nb::none()));
}

nb::object loaded_module(const char* name) {
  return nb::handle(PyImport_GetModuleDict()).attr("get")(name);
}

bool is_masked_array(PyTypeObject* type) {
  const nb::object module = loaded_module("numpy.ma");
  if (module.is_none()) return false;
  const nb::object masked = module.attr("MaskedArray");
  return PyType_IsSubtype(type, reinterpret_cast<PyTypeObject*>(masked.ptr())) != 0;
}

const char* refusal_of_numpy(PyTypeObject* type) {
  if (is_masked_array(type)) {
    return "a masked array, whose mask would be ignored; takes it after filled()";
  }
  const nb::handle handle = reinterpret_cast<PyObject*>(type);
  const nb::object ndarray = loaded_module("numpy").attr("ndarray");
  const bool plain = same_attribute(handle, ndarray, "__array_ufunc__") &&
                     same_attribute(handle, ndarray, "__array_function__");
  return plain ? nullptr
               : "an ndarray that has NumPy's functions done its own way, which this is not; takes "
                 "it after numpy.asarray()";
}

const char* refusal_of_torch(PyTypeObject* type) {
  const nb::object tensor = loaded_module("torch").attr("Tensor");
  const nb::handle handle = reinterpret_cast<PyObject*>(type);
  if (same_attribute(handle, tensor, "__torch_dispatch__")) return nullptr;
  return "a tensor that has operations done its own way (__torch_dispatch__), which this is not; "
         "takes plain tensors";
}

/// Libraries of no special treatment that mark their arrays as torch does.
void refuse_foreign_gradients(Argument argument, PyObject* object) {
  if (!nb::getattr(nb::handle(object), "requires_grad", nb::none()).is(nb::handle(Py_True))) return;
  fail(ErrorCode::unsupported, argument.call, ": ", argument.name,
       ": requires gradients, but this is forward only; takes it detached");
}

void refuse_tangents(const char* call, std::initializer_list<NamedObject> arguments) {
  if (!in_dual_level()) return;
  for (const NamedObject& argument : arguments) {
    if (argument.is_of(Framework::torch)) refuse_tangent({call, argument.name}, argument.object);
  }
}

/// All arrays at once, since asking MLX is slow; the one to name is looked for where it matters.
void refuse_mlx_tracing(const char* call, std::initializer_list<NamedObject> arguments) {
  std::array<PyObject*, kMostArrays> all{};
  std::size_t n = 0;
  for (const NamedObject& argument : arguments) {
    if (argument.is_of(Framework::mlx)) all[n++] = argument.object;
  }
  if (n == 0 || !mlx_traces(all.data(), n)) return;
  for (const NamedObject& argument : arguments) {
    if (!argument.is_of(Framework::mlx) || !mlx_traces(&argument.object, 1)) continue;
    fail(ErrorCode::unsupported, call, ": ", argument.name,
         ": an MLX transformation (grad, vjp, jvp, vmap, compile) traces it, but this is forward "
         "only; takes arrays outside of one");
  }
}

}  // namespace

const char* refusal_of_type(PyTypeObject* type, Framework framework) {
  if (framework == Framework::numpy) return refusal_of_numpy(type);
  if (framework == Framework::torch) return refusal_of_torch(type);
  return nullptr;
}

void refuse_hidden_state(Argument argument, PyObject* object, const ArrayType& type) {
  if (type.refusal != nullptr) {
    fail(ErrorCode::unsupported, argument.call, ": ", argument.name, ": ", type.refusal);
  }
  if (type.framework == Framework::torch) refuse_torch_state(argument, object);
  if (type.framework == Framework::other) refuse_foreign_gradients(argument, object);
}

void refuse_traced(const char* call, std::initializer_list<NamedObject> arguments) {
  const NamedObject* torch = nullptr;
  for (const NamedObject& argument : arguments) {
    if (argument.is_of(Framework::torch)) torch = &argument;
  }
  if (torch != nullptr) {
    refuse_torch_recording({call, torch->name});
    refuse_tangents(call, arguments);
  }
  refuse_mlx_tracing(call, arguments);
}

void refuse_hidden_number(Argument argument, PyObject* object) {
  if (!nb::hasattr(nb::handle(object), "__dlpack__")) return;
  const ArrayType type = array_type_of(object);
  refuse_hidden_state(argument, object, type);
  refuse_traced(argument.call, {{argument.name, object, type.framework}});
}

void init_hidden_state() { init_hidden_torch(); }

}  // namespace metal_sdpa::python
