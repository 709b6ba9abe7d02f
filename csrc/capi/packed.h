// Where the rows of packed sequences and pages are, and how many are in use.
#pragma once

#include "metal_sdpa/c.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa::capi {

/// Sets rows, lengths and extents of `problem`, whose batch is set. Errors begin with `call`.
void set_query_rows(const char* call, const metal_sdpa_problem& given, SdpaProblem& problem);
/// The same of the keys; pages have to be set.
void set_key_rows(const char* call, const metal_sdpa_problem& given, SdpaProblem& problem);

}  // namespace metal_sdpa::capi
