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

/// InvalidArgument where an array lies in memory that `device` is not to take it from.
void require_place(const SdpaCall& call, Argument argument, const Array& array,
                   const Device& device);

/// refuse_changed for every array of the call, where one is of an unknown class.
void refuse_changed_arrays(const SdpaCall& call, SdpaInputs& inputs, const Array& out);

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

}  // namespace metal_sdpa::python
