// The plan of sdpa_prefill.
#include "cpu/fast/families.h"

namespace metal_sdpa::cpu {

bool plan_prefill(const SdpaProblem&, Isa, Plan&) { return false; }

}  // namespace metal_sdpa::cpu
