// The straightforward kernels: the definition of attention that every other kernel is held against.
#pragma once

#include "metal_sdpa/native_kernel.h"

namespace metal_sdpa::cpu {

/// Threadgroups (batch, n_heads, ceil(seq_len / SDPA_TILE_Q)). Buffers as sdpa_args.h numbers them:
/// SdpaParamsBlock where SDPA_BUFFER_ARGS is not bound, else SdpaArgs. T: float, F16 or BF16.
template <typename T>
void sdpa_kernel(const NativeLaunch& launch, WorkRange work, StopToken& stop);

/// Keys of one span of the straightforward kernel. A running f32 sum may be off by its length in
/// units in the last place; the accuracy bound holds at any S because states restart here.
inline constexpr int kStraightSpan = 2048;

/// Largest D and Dv.
inline constexpr int kMaxHeadDim = 1024;

}  // namespace metal_sdpa::cpu
