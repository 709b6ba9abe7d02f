// From a parsed call to one that only has to run: arrays read, device chosen, outputs made.
#pragma once

#include <optional>

#include "metal_sdpa/device.h"
#include "outputs.h"
#include "sdpa_call.h"
#include "sdpa_problem.h"
#include "staging.h"

namespace metal_sdpa::python {

const Device& cpu_device();

/// A call that has passed every check but those of memory that only the device can make.
struct ReadyCall {
  SdpaInputs inputs;
  Outputs outputs;
  std::optional<Device> named;
  const Device* device = nullptr;
};

/// Reads, checks and makes what the call needs. The arrays are borrowed: nothing may run the
/// caller's code afterwards.
void make_ready(const SdpaCall& call, ReadyCall& ready);

/// Where the arrays lie is checked, and the outputs that the caller did not give are made.
/// InvalidArgument for memory that `device` is not to take an array from.
void make_placed_outputs(const SdpaCall& call, const Device& device, SdpaInputs& inputs,
                         Outputs& outputs);

/// out, or (out, lse), as the caller gets it.
nb::object take_outputs(const SdpaCall& call, const SdpaInputs& inputs, Outputs& outputs);

/// What the core would refuse about memory, as `device` sees the arrays themselves.
void check_arrays(const SdpaCall& call, const Device& device, const SdpaInputs& inputs,
                  const Outputs& outputs);

/// How many arrays of the call lie in host memory that `device` cannot see, and how many do not.
struct StagedCount {
  int staged = 0;
  int seen = 0;
};

StagedCount count_staged(const SdpaCall& call, const Device& device, SdpaInputs& inputs,
                         const Outputs& outputs);

/// InvalidArgument where the caller's out overlaps an input and copies for Metal would hide it.
void refuse_hidden_overlap(const SdpaCall& call, const Device& device, SdpaInputs& inputs,
                           const Outputs& outputs);

/// An array's memory as the device sees it, and the layout of its elements there.
template <typename Layout>
Buffer input_buffer(const Device& device, Argument argument, const Array& array, Layout& layout) {
  if (!needs_staging(device, array)) return wrap_elements(device, argument, array, layout.offset);
  Placement placement;
  Buffer copy = stage_in(device, array, placement);
  place(placement, layout);
  return copy;
}

/// Calls work(operands, problem) on the memory of the call's arrays, with copies in and out where
/// the device needs them. Needs no GIL.
template <typename Work>
void work_on_arrays(const SdpaCall& call, const Device& device, SdpaInputs& inputs,
                    const Outputs& outputs, const Work& work) {
  SdpaProblem& problem = inputs.problem;
  SdpaOperands operands;
  for_each_input(call, inputs, problem,
                 [&](Argument argument, PyObject*, const Array& array, auto buffer, auto& layout) {
                   operands.*buffer = input_buffer(device, argument, array, layout);
                 });
  bind_outputs(call, device, inputs, outputs, operands);
  work(operands, problem);
  finish_outputs(call, device, inputs, outputs, operands);
}

}  // namespace metal_sdpa::python
