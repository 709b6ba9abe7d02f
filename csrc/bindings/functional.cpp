// sdpa(), plan(), sdpa_varlen() and sdpa_paged(): arrays of any framework in, the caller's own out.
#include <optional>
#include <string>
#include <vector>

#include "bindings.h"
#include "core/dispatch.h"
#include "core/validation.h"
#include "device.h"
#include "docs.h"
#include "errors.h"
#include "interrupts.h"
#include "metal_sdpa/support.h"
#include "outputs.h"
#include "sdpa_call.h"
#include "sdpa_problem.h"
#include "staging.h"

namespace metal_sdpa::python {
namespace {

const Device& cpu_device() {
  static const Device* const device = new Device("cpu");
  return *device;
}

/// Where the arrays are, unless the call names a device, which `named` then holds.
const Device& choose_device(const SdpaCall& call, const SdpaInputs& inputs,
                            std::optional<Device>& named) {
  if (call.device != nullptr) {
    if (nb::isinstance<Device>(call.device)) return nb::cast<Device&>(nb::handle(call.device));
    return named.emplace(to_device({call.name, "device"}, call.device));
  }
  return inputs.q.on_metal ? named.emplace("metal") : cpu_device();
}

/// The CPU takes host memory. Metal takes both when the call asks for Metal by name; host arrays
/// are not mixed with Metal ones unasked, but for page numbers.
void require_place(const SdpaCall& call, Argument argument, const Array& array,
                   const Device& device) {
  const bool metal = device.kind() == DeviceKind::metal;
  const bool is_indices = array.dtype == DType::i32 || array.dtype == DType::i64;
  if (is_indices && !array.on_metal) return;
  if (array.on_metal == metal || (metal && call.device != nullptr)) return;
  fail_argument(argument.call, ": ", argument.name, ": is in ", array.on_metal ? "Metal" : "host",
                " memory, but the device is ", device_kind_name(device.kind()));
}

/// An array's memory as the device sees it, and the layout of its elements there.
template <typename Layout>
Buffer input_buffer(const Device& device, Argument argument, const Array& array, Layout& layout) {
  if (!needs_staging(device, array)) return wrap_elements(device, argument, array, layout.offset);
  Placement placement;
  Buffer copy = stage_in(device, array, placement);
  place(placement, layout);
  return copy;
}

/// What the core would refuse about memory, as `device` sees the arrays themselves.
void check_arrays(const SdpaCall& call, const Device& device, const SdpaInputs& inputs,
                  const Outputs& outputs) {
  SdpaProblem problem = inputs.problem;
  problem.return_lse = false;
  SdpaOperands operands;
  for_each_input(call, inputs, problem,
                 [&](Argument argument, PyObject*, const Array& array, auto buffer, auto& layout) {
                   operands.*buffer = wrap_elements(device, argument, array, layout.offset);
                 });
  const Result& out = outputs.out;
  operands.out = out.buffer.valid()
                     ? out.buffer
                     : wrap_elements(device, {call.name, "out"}, out.array, problem.out.offset);
  validate_operands(problem, operands, *device.backend(), call.name);
}

/// How many arrays of the call lie in host memory that `device` cannot see, and how many do not.
struct StagedCount {
  int staged = 0;
  int seen = 0;
};

StagedCount count_staged(const SdpaCall& call, const Device& device, SdpaInputs& inputs,
                         const Outputs& outputs) {
  StagedCount count;
  const auto add = [&](const Array& array) {
    ++(needs_staging(device, array) ? count.staged : count.seen);
  };
  for_each_input(call, inputs, inputs.problem,
                 [&](Argument, PyObject*, const Array& array, auto, auto&) { add(array); });
  add(outputs.out.array);
  return count;
}

/// Memory, work, and copies back where the device needed them. Needs no GIL.
void run(const SdpaCall& call, const Device& device, SdpaInputs& inputs, const Outputs& outputs) {
  SdpaProblem& problem = inputs.problem;
  SdpaOperands operands;
  for_each_input(call, inputs, problem,
                 [&](Argument argument, PyObject*, const Array& array, auto buffer, auto& layout) {
                   operands.*buffer = input_buffer(device, argument, array, layout);
                 });
  bind_outputs(call, device, inputs, outputs, operands);
  run_sdpa(device, operands, problem, call.name);
  finish_outputs(call, device, inputs, outputs, operands);
}

/// A call that has passed every check but those of memory that only the device can make.
struct ReadyCall {
  SdpaInputs inputs;
  Outputs outputs;
  std::optional<Device> named;
  const Device* device = nullptr;
};

void refuse_changed_arrays(const SdpaCall& call, ReadyCall& ready) {
  SdpaInputs& inputs = ready.inputs;
  const Array& out = ready.outputs.out.array;
  bool has_unknown = call.out != nullptr && out.type.framework == Framework::other;
  for_each_input(call, inputs, inputs.problem,
                 [&](Argument, PyObject*, const Array& array, auto, auto&) {
                   has_unknown = has_unknown || array.type.framework == Framework::other;
                 });
  if (!has_unknown) return;
  for_each_input(call, inputs, inputs.problem,
                 [&](Argument argument, PyObject* object, const Array& array, auto, auto&) {
                   refuse_changed(argument, object, array);
                 });
  if (call.out != nullptr) refuse_changed({call.name, "out"}, call.out, out);
}

void make_ready(const SdpaCall& call, ReadyCall& ready) {
  SdpaInputs& inputs = ready.inputs;
  read_sdpa_inputs(call, inputs);
  const Device& device = choose_device(call, inputs, ready.named);
  ready.device = &device;
  if (call.out != nullptr) import_out(call, inputs, ready.outputs.out.array);
  validate_problem(inputs.problem, device.limits(), call.name);
  require_features(call.name, device.kind(), inputs.problem);
  for_each_input(call, inputs, inputs.problem,
                 [&](Argument argument, PyObject*, const Array& array, auto, auto&) {
                   require_place(call, argument, array, device);
                 });
  refuse_changed_arrays(call, ready);
  make_outputs(call, device, inputs, ready.outputs);
  require_place(call, {call.name, "out"}, ready.outputs.out.array, device);
}

nb::object call_sdpa(const SdpaCall& call) {
  ReadyCall ready;
  make_ready(call, ready);
  const Device& device = *ready.device;
  // Copies would hide an overlap.
  if (call.out != nullptr && device.kind() == DeviceKind::metal &&
      count_staged(call, device, ready.inputs, ready.outputs).seen == 0) {
    check_arrays(call, cpu_device(), ready.inputs, ready.outputs);
  }
  without_gil([&] { run(call, device, ready.inputs, ready.outputs); });
  const Argument argument{call.name, "q"};
  nb::object out = ready.outputs.out.take(argument, call.q);
  if (!ready.inputs.problem.return_lse) return out;
  return nb::make_tuple(out, ready.outputs.lse.take(argument, call.q));
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
