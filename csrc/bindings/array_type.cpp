// A small table of array types, filled once, read without a lock.
#include "array_type.h"

#include <array>
#include <atomic>
#include <mutex>
#include <string_view>

#include "errors.h"
#include "hidden_state.h"

namespace metal_sdpa::python {
namespace {

namespace nb = nanobind;

constexpr std::size_t kMaxTypes = 16;

struct TypeTable {
  std::array<ArrayType, kMaxTypes> types;
  std::atomic<std::size_t> size{0};
  std::mutex mutex;
};

TypeTable& type_table() {
  static TypeTable* const table = new TypeTable;  // its types are never let go
  return *table;
}

/// Whether `type` is MODULE.NAME or under it; false while the module is not loaded.
bool is_under(PyTypeObject* type, const char* module, const char* name) {
  const nb::object loaded = nb::handle(PyImport_GetModuleDict()).attr("get")(module);
  const nb::object base = nb::getattr(loaded, name, nb::none());
  return PyType_Check(base.ptr()) &&
         PyType_IsSubtype(type, reinterpret_cast<PyTypeObject*>(base.ptr())) != 0;
}

Framework framework_of(PyTypeObject* type) {
  if (is_under(type, "numpy", "ndarray")) return Framework::numpy;
  if (is_under(type, "torch", "Tensor")) return Framework::torch;
  const nb::handle mro = reinterpret_cast<PyObject*>(type);
  for (const nb::handle base : nb::borrow<nb::tuple>(mro.attr("__mro__"))) {
    const nb::object module = nb::getattr(base, "__module__", nb::none());
    std::string text;
    if (!find_text(module, text)) continue;
    const std::string_view root = std::string_view(text).substr(0, text.find('.'));
    if (root == "jax" || root == "jaxlib") return Framework::jax;
    if (root == "mlx") return Framework::mlx;
  }
  return Framework::other;
}

/// The entry of major version 1 in the chain of versions.
const DLExchangeApi* exchange_of(PyTypeObject* type) {
  const nb::handle handle = reinterpret_cast<PyObject*>(type);
  const nb::object capsule = nb::getattr(handle, "__dlpack_c_exchange_api__", nb::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  const auto* api =
      static_cast<const DLExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (api != nullptr && api->version.major != 1) api = api->previous;
  return api;
}

ArrayType add_type(TypeTable& table, PyTypeObject* type) {
  const Framework framework = framework_of(type);
  const ArrayType made{type, framework, exchange_of(type), refusal_of_type(type, framework)};
  const std::lock_guard<std::mutex> lock(table.mutex);
  const std::size_t size = table.size.load(std::memory_order_relaxed);
  if (size == kMaxTypes) return made;
  Py_INCREF(reinterpret_cast<PyObject*>(type));  // so that no other type takes its address
  table.types[size] = made;
  table.size.store(size + 1, std::memory_order_release);
  return made;
}

}  // namespace

ArrayType array_type_of(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  TypeTable& table = type_table();
  const std::size_t size = table.size.load(std::memory_order_acquire);
  for (std::size_t i = 0; i < size; ++i) {
    if (table.types[i].type == type) return table.types[i];
  }
  return add_type(table, type);
}

}  // namespace metal_sdpa::python
