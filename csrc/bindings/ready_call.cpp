// Devices, places and outputs of a call.
#include "ready_call.h"

#include "core/validation.h"
#include "device.h"
#include "metal_sdpa/support.h"

namespace metal_sdpa::python {
namespace {

namespace nb = nanobind;

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

void refuse_changed_arrays(const SdpaCall& call, SdpaInputs& inputs, const Array& out) {
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

}  // namespace

const Device& cpu_device() {
  static const Device* const device = new Device("cpu");
  return *device;
}

void make_placed_outputs(const SdpaCall& call, const Device& device, SdpaInputs& inputs,
                         Outputs& outputs) {
  for_each_input(call, inputs, inputs.problem,
                 [&](Argument argument, PyObject*, const Array& array, auto, auto&) {
                   require_place(call, argument, array, device);
                 });
  refuse_changed_arrays(call, inputs, outputs.out.array);
  make_outputs(call, device, inputs, outputs);
  require_place(call, {call.name, "out"}, outputs.out.array, device);
}

nb::object take_outputs(const SdpaCall& call, const SdpaInputs& inputs, Outputs& outputs) {
  const Argument argument{call.name, "q"};
  nb::object out = outputs.out.take(argument, call.q);
  if (!inputs.problem.return_lse) return out;
  return nb::make_tuple(out, outputs.lse.take(argument, call.q));
}

void make_ready(const SdpaCall& call, ReadyCall& ready) {
  SdpaInputs& inputs = ready.inputs;
  read_sdpa_inputs(call, inputs);
  const Device& device = choose_device(call, inputs, ready.named);
  ready.device = &device;
  if (call.out != nullptr) import_out(call, inputs, ready.outputs.out.array);
  validate_problem(inputs.problem, device.limits(), call.name);
  require_features(call.name, device.kind(), inputs.problem);
  make_placed_outputs(call, device, inputs, ready.outputs);
}

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

void refuse_hidden_overlap(const SdpaCall& call, const Device& device, SdpaInputs& inputs,
                           const Outputs& outputs) {
  if (call.out == nullptr || device.kind() != DeviceKind::metal) return;
  if (count_staged(call, device, inputs, outputs).seen != 0) return;
  check_arrays(call, cpu_device(), inputs, outputs);
}

}  // namespace metal_sdpa::python
