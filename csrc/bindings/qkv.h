// q, k and v as the calls take them: dense, packed or paged.
#pragma once

#include "sdpa_problem.h"

namespace metal_sdpa::python {

/// Describes q, k and v as `inputs.form` says they are given, each with the four axes of
/// SdpaInputs. Errors name the argument.
void import_qkv(const SdpaCall& call, SdpaInputs& inputs);

}  // namespace metal_sdpa::python
