// sdpa_paged(): keys in pages that a block table names.
#pragma once

#include "sdpa_problem.h"

namespace metal_sdpa::python {

/// As read_sdpa_inputs.
void read_paged_inputs(const SdpaCall& call, SdpaInputs& inputs);

}  // namespace metal_sdpa::python
