// What a call writes: the caller's out or a new one, and the lse.
#pragma once

#include "result.h"
#include "sdpa_problem.h"

namespace metal_sdpa::python {

/// The output and, where asked for, the lse of a call.
struct Outputs {
  Result out;
  Result lse;
};

/// `out` as the caller gave it, checked as far as the core does not.
void import_out(const SdpaCall& call, SdpaInputs& inputs, Array& out);

/// Those that the caller did not give, in memory of their own.
void make_outputs(const SdpaCall& call, const Device& device, SdpaInputs& inputs, Outputs& outputs);

/// Their memory as the device sees it. Needs no GIL.
void bind_outputs(const SdpaCall& call, const Device& device, SdpaInputs& inputs,
                  const Outputs& outputs, SdpaOperands& operands);

/// Once the work is done: rows that no kernel writes, and copies back where the device needed them.
/// Needs no GIL.
void finish_outputs(const SdpaCall& call, const Device& device, const SdpaInputs& inputs,
                    const Outputs& outputs, const SdpaOperands& operands);

}  // namespace metal_sdpa::python
