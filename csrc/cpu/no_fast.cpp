// Stands in for the fast kernel families where the build leaves them out.
#include "cpu/fast/fast.h"

namespace metal_sdpa::cpu {

void register_fast(const std::function<void(const char*, NativeKernel)>&) {}

bool plan_fast(const SdpaProblem&, const PlanTarget&, Plan&) { return false; }

}  // namespace metal_sdpa::cpu
