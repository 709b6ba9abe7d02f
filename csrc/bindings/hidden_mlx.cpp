// MLX has no flag for it, but a compiled function knows: called with an array that is being traced,
// it runs its Python function, so that the outer transformation sees through it. With other arrays
// it does so only the first time for each dtype and rank.
#include "hidden_mlx.h"

#include <atomic>

namespace metal_sdpa::python {
namespace {

thread_local std::uint64_t t_runs = 0;  // of the Python function, on this thread

PyObject* count_run(PyObject*, PyObject*) {
  ++t_runs;
  Py_RETURN_NONE;
}

PyMethodDef g_count_run = {"count_run", count_run, METH_VARARGS, nullptr};

/// The compiled function and an array that nothing traces; both live as long as the process.
struct Probe {
  PyObject* compiled = nullptr;
  PyObject* untraced = nullptr;
};

std::atomic<const Probe*> g_probe{nullptr};

/// Two threads may both make one: a lock would be held while Python imports.
const Probe& probe() {
  const Probe* known = g_probe.load(std::memory_order_acquire);
  if (known != nullptr) return *known;
  const nb::module_ mlx = nb::module_::import_("mlx.core");
  const nb::object count = nb::steal(PyCFunction_New(&g_count_run, nullptr));
  nb::object compiled = mlx.attr("compile")(count, nb::arg("shapeless") = true);
  nb::object untraced = mlx.attr("zeros")(nb::make_tuple());
  const auto* made = new Probe{compiled.release().ptr(), untraced.release().ptr()};
  g_probe.store(made, std::memory_order_release);
  return *made;
}

/// Whether the Python function runs.
bool runs(const Probe& probe, PyObject* const* arrays, std::size_t n_arrays) {
  const std::uint64_t before = t_runs;
  const nb::object result =
      nb::steal(PyObject_Vectorcall(probe.compiled, arrays, n_arrays, nullptr));
  if (!result.is_valid()) nb::raise_python_error();
  return t_runs != before;
}

/// Whether it runs even for arrays that the compiled function has seen before.
bool runs_always(const Probe& probe, PyObject* const* arrays, std::size_t n_arrays) {
  return runs(probe, arrays, n_arrays) && runs(probe, arrays, n_arrays);
}

}  // namespace

bool mlx_traces(PyObject* const* arrays, std::size_t n_arrays) {
  const Probe& known = probe();
  return runs_always(known, arrays, n_arrays) && !runs_always(known, &known.untraced, 1);
}

}  // namespace metal_sdpa::python
