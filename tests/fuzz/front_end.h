// encode_sdpa with SdpaParams: the engine's front end, on packed tensors.
#pragma once

#include "byte_reader.h"

namespace metal_sdpa::fuzz {

/// Makes parameters and tensors of the bytes: they are taken exactly where they fit, and then give
/// what sdpa() gives.
void try_params(ByteReader& bytes);

}  // namespace metal_sdpa::fuzz
