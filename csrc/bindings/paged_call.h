// sdpa_paged(): keys in pages that a block table names.
#pragma once

#include "sdpa_problem.h"

namespace metal_sdpa::python {

/// As read_sdpa_inputs.
void read_paged_inputs(const SdpaCall& call, SdpaInputs& inputs);

/// The page numbers, described with four axes: [B, max_blocks], or one list of all sequences'.
void import_table(Argument argument, PyObject* object, Lifetime lifetime, bool is_list,
                  Array& table);

}  // namespace metal_sdpa::python
