// Native kernels that merge states of attention (metal_sdpa/merge_states.h).
#pragma once

#include "metal_sdpa/native_kernel.h"

namespace metal_sdpa::cpu {

/// Threadgroups (B, H, rows): one row each. In and Out: float, F16 or BF16.
template <typename In, typename Out>
void merge_states_kernel(const NativeLaunch& launch, WorkRange work, StopToken& stop);

}  // namespace metal_sdpa::cpu
