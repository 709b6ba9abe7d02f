// sdpa() and plan(): arrays of any framework in, the caller's own out.
#include <optional>

#include "bindings.h"
#include "core/validation.h"
#include "device.h"
#include "docs.h"
#include "errors.h"
#include "interrupts.h"
#include "metal_sdpa/support.h"
#include "result.h"
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

void check_features(const SdpaCall& call, DeviceKind kind) {
  if (call.mask != nullptr) require_feature(call.name, kind, "mask");
  if (call.window != nullptr) require_feature(call.name, kind, "window");
  if (call.softcap != nullptr) require_feature(call.name, kind, "softcap");
  if (call.sinks != nullptr) require_feature(call.name, kind, "sinks");
}

/// The CPU takes host memory. Metal takes both when the call asks for Metal by name; host arrays
/// are not mixed with Metal ones unasked.
void require_place(const SdpaCall& call, const char* name, const Array& array,
                   const Device& device) {
  const bool metal = device.kind() == DeviceKind::metal;
  if (array.on_metal == metal || (metal && call.device != nullptr)) return;
  fail_argument(call.name, ": ", name, ": is in ", array.on_metal ? "Metal" : "host",
                " memory, but the device is ", device_kind_name(device.kind()));
}

/// `out` as the caller gave it, checked as far as the core does not.
void import_out(const SdpaCall& call, const SdpaInputs& inputs, Array& out) {
  const Argument argument{call.name, "out"};
  const SdpaProblem& problem = inputs.problem;
  import_tensor(argument, call.out, "[B, Hq, L, Dv]", out);
  if (out.read_only) fail_argument(call.name, ": out: is read-only");
  if (out.copied) fail_argument(call.name, ": out: gives a copy of its memory, takes one to share");
  if (out.dtype != problem.dtype) {
    fail(ErrorCode::unsupported_dtype, call.name, ": out: dtype ", dtype_name(out.dtype),
         ", but q has ", dtype_name(problem.dtype));
  }
  const Shape wanted{problem.batch, problem.n_heads, problem.seq_len, problem.value_dim};
  if (out.shape_list() != wanted) {
    fail_argument(call.name, ": out: shape ", out.shape_list(), ", takes ", wanted);
  }
}

/// The output and, where asked for, the lse of a call.
struct Outputs {
  Result out;
  Result lse;
};

void make_outputs(const SdpaCall& call, const Device& device, SdpaInputs& inputs,
                  Outputs& outputs) {
  SdpaProblem& problem = inputs.problem;
  const Argument argument{call.name, "q"};
  const std::int64_t shape[4] = {problem.batch, problem.n_heads, problem.seq_len,
                                 problem.value_dim};
  if (call.out != nullptr) {
    import_out(call, inputs, outputs.out.array);
    outputs.out.object = nb::borrow(nb::handle(call.out));
    problem.out = tensor_layout({call.name, "out"}, outputs.out.array);
  } else {
    make_result(argument, device, inputs.q, call.q, problem.dtype, shape, 4, outputs.out);
  }
  if (problem.return_lse) {
    make_result(argument, device, inputs.q, call.q, DType::f32, shape, 3, outputs.lse);
  }
}

Buffer input_buffer(const Device& device, Argument argument, const Array& array,
                    TensorLayout& layout) {
  if (needs_staging(device, array)) return stage_in(device, array, layout);
  return wrap_tensor(device, argument, array, layout);
}

Buffer output_buffer(const Device& device, Argument argument, const Result& result,
                     TensorLayout& layout) {
  if (needs_staging(device, result.array)) return stage_empty(device, result.array, layout);
  if (result.buffer.valid()) return result.buffer;
  return wrap_tensor(device, argument, result.array, layout);
}

/// Whether `out` overlaps itself or an input, as `device` sees the arrays themselves.
void check_arrays(const SdpaCall& call, const Device& device, const SdpaInputs& inputs,
                  const Array& out) {
  SdpaProblem problem = inputs.problem;
  problem.return_lse = false;
  SdpaOperands operands;
  operands.q = wrap_tensor(device, {call.name, "q"}, inputs.q, problem.q);
  operands.k = wrap_tensor(device, {call.name, "k"}, inputs.k, problem.k);
  operands.v = wrap_tensor(device, {call.name, "v"}, inputs.v, problem.v);
  operands.out = wrap_tensor(device, {call.name, "out"}, out, problem.out);
  validate_operands(problem, operands, *device.backend(), call.name);
}

/// Whether every array of the call lies in host memory that `device` cannot see. Copies would hide
/// an overlap.
bool all_staged(const Device& device, const SdpaInputs& inputs, const Array& out) {
  return needs_staging(device, inputs.q) && needs_staging(device, inputs.k) &&
         needs_staging(device, inputs.v) && needs_staging(device, out);
}

/// Whether `device` sees every array of the call.
bool none_staged(const Device& device, const SdpaInputs& inputs, const Array& out) {
  return !needs_staging(device, inputs.q) && !needs_staging(device, inputs.k) &&
         !needs_staging(device, inputs.v) && !needs_staging(device, out);
}

/// Memory, work, and copies back where the device needed them. Needs no GIL.
void run(const SdpaCall& call, const Device& device, SdpaInputs& inputs, const Outputs& outputs) {
  SdpaProblem& problem = inputs.problem;
  SdpaOperands operands;
  operands.q = input_buffer(device, {call.name, "q"}, inputs.q, problem.q);
  operands.k = input_buffer(device, {call.name, "k"}, inputs.k, problem.k);
  operands.v = input_buffer(device, {call.name, "v"}, inputs.v, problem.v);
  operands.out = output_buffer(device, {call.name, "out"}, outputs.out, problem.out);
  TensorLayout packed = tensor_layout({call.name, "lse"}, outputs.lse.array);
  if (problem.return_lse) {
    operands.lse = output_buffer(device, {call.name, "lse"}, outputs.lse, packed);
  }
  sdpa(device, operands, problem);
  if (needs_staging(device, outputs.out.array)) stage_out(operands.out, outputs.out.array);
  if (!problem.return_lse) return;
  if (needs_staging(device, outputs.lse.array)) stage_out(operands.lse, outputs.lse.array);
}

void require_places(const SdpaCall& call, const SdpaInputs& inputs, const Device& device) {
  require_place(call, "q", inputs.q, device);
  require_place(call, "k", inputs.k, device);
  require_place(call, "v", inputs.v, device);
}

nb::object call_sdpa(const SdpaCall& call) {
  SdpaInputs inputs;
  read_sdpa_inputs(call, inputs);
  std::optional<Device> named;
  const Device& device = choose_device(call, inputs, named);
  check_features(call, device.kind());
  validate_problem(inputs.problem, device.limits(), call.name);
  Outputs outputs;
  make_outputs(call, device, inputs, outputs);
  require_places(call, inputs, device);
  require_place(call, "out", outputs.out.array, device);
  if (call.out != nullptr && all_staged(device, inputs, outputs.out.array)) {
    check_arrays(call, cpu_device(), inputs, outputs.out.array);
  }
  without_gil([&] { run(call, device, inputs, outputs); });
  const Argument argument{call.name, "q"};
  nb::object out = outputs.out.take(argument, call.q);
  if (!inputs.problem.return_lse) return out;
  return nb::make_tuple(out, outputs.lse.take(argument, call.q));
}

std::string staging_text(const Device& device, const SdpaInputs& inputs) {
  std::string names;
  const auto add = [&](const char* name, const Array& array) {
    if (needs_staging(device, array)) names += text_of(names.empty() ? "" : ", ", name);
  };
  add("q", inputs.q);
  add("k", inputs.k);
  add("v", inputs.v);
  if (names.empty()) return names;
  return text_of("copies of ", names, " go from host memory to Metal, and results back\n");
}

/// What sdpa() would refuse about `out`.
void check_planned_out(const SdpaCall& call, const Device& device, SdpaInputs& inputs) {
  Array out;
  import_out(call, inputs, out);
  inputs.problem.out = tensor_layout({call.name, "out"}, out);
  require_place(call, "out", out, device);
  if (all_staged(device, inputs, out)) check_arrays(call, cpu_device(), inputs, out);
  if (none_staged(device, inputs, out)) check_arrays(call, device, inputs, out);
}

nb::object call_plan(const SdpaCall& call) {
  SdpaInputs inputs;
  read_sdpa_inputs(call, inputs);
  std::optional<Device> named;
  const Device& device = choose_device(call, inputs, named);
  check_features(call, device.kind());
  validate_problem(inputs.problem, device.limits(), call.name);
  require_places(call, inputs, device);
  if (call.out != nullptr) check_planned_out(call, device, inputs);
  std::string text = plan_sdpa(device, inputs.problem).describe();
  text += staging_text(device, inputs);
  return nb::str(text.c_str());
}

template <nb::object (*Function)(const SdpaCall&)>
PyObject* vectorcall(const char* name, PyObject* const* arguments, Py_ssize_t n_positional,
                     PyObject* keywords) noexcept {
  try {
    return Function(parse_sdpa_call(name, arguments, n_positional, keywords)).release().ptr();
  } catch (...) {
    set_error_in_flight();
    return nullptr;
  }
}

PyObject* python_sdpa(PyObject*, PyObject* const* arguments, Py_ssize_t n_positional,
                      PyObject* keywords) noexcept {
  return vectorcall<call_sdpa>("sdpa", arguments, n_positional, keywords);
}

PyObject* python_plan(PyObject*, PyObject* const* arguments, Py_ssize_t n_positional,
                      PyObject* keywords) noexcept {
  return vectorcall<call_plan>("plan", arguments, n_positional, keywords);
}

template <typename Function>
PyCFunction as_method(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef g_methods[] = {
    {"sdpa", as_method(python_sdpa), METH_FASTCALL | METH_KEYWORDS, kSdpaDoc},
    {"plan", as_method(python_plan), METH_FASTCALL | METH_KEYWORDS, kPlanDoc},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

void bind_functional(nb::module_& module) {
  init_sdpa_call();
  init_arrays();
  init_results();
  if (PyModule_AddFunctions(module.ptr(), g_methods) != 0) nb::raise_python_error();
}

}  // namespace metal_sdpa::python
