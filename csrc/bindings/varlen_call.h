// sdpa_varlen(): queries and keys of sequences that stand one behind the other.
#pragma once

#include "sdpa_problem.h"

namespace metal_sdpa::python {

/// As read_sdpa_inputs.
void read_varlen_inputs(const SdpaCall& call, SdpaInputs& inputs);

}  // namespace metal_sdpa::python
