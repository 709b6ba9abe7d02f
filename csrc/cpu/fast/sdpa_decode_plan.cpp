// The plan of sdpa_decode.
#include "cpu/fast/families.h"

namespace metal_sdpa::cpu {

bool plan_decode(const SdpaProblem&, Isa, Plan&) { return false; }

}  // namespace metal_sdpa::cpu
