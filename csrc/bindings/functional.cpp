// sdpa(), plan(), sdpa_varlen() and sdpa_paged(): arrays of any framework in, the caller's own out.
#include <string>
#include <vector>

#include "bindings.h"
#include "core/dispatch.h"
#include "docs.h"
#include "errors.h"
#include "interrupts.h"
#include "ready_call.h"

namespace metal_sdpa::python {
namespace {

nb::object call_sdpa(const SdpaCall& call) {
  ReadyCall ready;
  make_ready(call, ready);
  const Device& device = *ready.device;
  refuse_hidden_overlap(call, device, ready.inputs, ready.outputs);
  without_gil([&] {
    work_on_arrays(call, device, ready.inputs, ready.outputs,
                   [&](const SdpaOperands& operands, const SdpaProblem& problem) {
                     run_sdpa(device, operands, problem, call.name);
                   });
  });
  return take_outputs(call, ready.inputs, ready.outputs);
}

std::string staging_text(const SdpaCall& call, const Device& device, SdpaInputs& inputs) {
  std::string names;
  for_each_input(call, inputs, inputs.problem,
                 [&](Argument argument, PyObject*, const Array& array, auto, auto&) {
                   if (!needs_staging(device, array)) return;
                   names += text_of(names.empty() ? "" : ", ", argument.name);
                 });
  if (names.empty()) return names;
  return text_of("copies of ", names, " go from host memory to Metal, and results back\n");
}

nb::object call_plan(const SdpaCall& call) {
  ReadyCall ready;
  make_ready(call, ready);
  const Device& device = *ready.device;
  const StagedCount count = count_staged(call, device, ready.inputs, ready.outputs);
  if (count.seen == 0) check_arrays(call, cpu_device(), ready.inputs, ready.outputs);
  if (count.staged == 0) check_arrays(call, device, ready.inputs, ready.outputs);
  std::string text = plan_sdpa(device, ready.inputs.problem).describe();
  text += staging_text(call, device, ready.inputs);
  return nb::str(text.c_str());
}

template <nb::object (*Function)(const SdpaCall&), KeyRows keys>
PyObject* vectorcall(const char* name, PyObject* const* arguments, Py_ssize_t n_positional,
                     PyObject* keywords) noexcept {
  try {
    return Function(parse_sdpa_call(name, keys, arguments, n_positional, keywords)).release().ptr();
  } catch (...) {
    set_error_in_flight();
    return nullptr;
  }
}

PyObject* python_sdpa(PyObject*, PyObject* const* arguments, Py_ssize_t n_positional,
                      PyObject* keywords) noexcept {
  return vectorcall<call_sdpa, KeyRows::dense>("sdpa", arguments, n_positional, keywords);
}

PyObject* python_varlen(PyObject*, PyObject* const* arguments, Py_ssize_t n_positional,
                        PyObject* keywords) noexcept {
  return vectorcall<call_sdpa, KeyRows::packed>("sdpa_varlen", arguments, n_positional, keywords);
}

PyObject* python_paged(PyObject*, PyObject* const* arguments, Py_ssize_t n_positional,
                       PyObject* keywords) noexcept {
  return vectorcall<call_sdpa, KeyRows::paged>("sdpa_paged", arguments, n_positional, keywords);
}

PyObject* python_plan(PyObject*, PyObject* const* arguments, Py_ssize_t n_positional,
                      PyObject* keywords) noexcept {
  return vectorcall<call_plan, KeyRows::dense>("plan", arguments, n_positional, keywords);
}

template <typename Function>
PyCFunction as_method(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef g_methods[] = {
    {"sdpa", as_method(python_sdpa), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"plan", as_method(python_plan), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"sdpa_varlen", as_method(python_varlen), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"sdpa_paged", as_method(python_paged), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

void bind_functional(nb::module_& module) {
  init_sdpa_call();
  init_arrays();
  init_results();
  // Python keeps the pointers for as long as the process lives.
  static const auto* const docs =
      new std::vector<std::string>{sdpa_doc(), plan_doc(), varlen_doc(), paged_doc()};
  for (std::size_t i = 0; i < docs->size(); ++i) g_methods[i].ml_doc = (*docs)[i].c_str();
  if (PyModule_AddFunctions(module.ptr(), g_methods) != 0) nb::raise_python_error();
}

}  // namespace metal_sdpa::python
