// One problem on every instruction set and on the straightforward kernel, against float64.
#pragma once

#include "byte_reader.h"

namespace metal_sdpa::fuzz {

/// Makes a problem of the bytes and tries it.
void try_problem(ByteReader& bytes);

}  // namespace metal_sdpa::fuzz
