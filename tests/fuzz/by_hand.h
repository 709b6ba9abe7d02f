// sdpa, sdpa_f16 and sdpa_bf16 dispatched by hand, with parameters, grids and bindings of any kind.
#pragma once

#include "byte_reader.h"

namespace metal_sdpa::fuzz {

/// Makes a dispatch of the bytes and tries it: it runs exactly where it fits its memory, and then
/// gives what sdpa() gives.
void try_by_hand(ByteReader& bytes);

/// get_pipeline gives no kernel but these by a name of the library's.
void try_names(ByteReader& bytes);

}  // namespace metal_sdpa::fuzz
