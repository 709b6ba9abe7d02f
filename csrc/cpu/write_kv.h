// Native kernels that put new rows into a cache (metal_sdpa/write_kv.h).
#pragma once

#include <cstdint>

#include "metal_sdpa/native_kernel.h"

namespace metal_sdpa::cpu {

/// Threadgroups (T, Hkv, 1): one head of one token each. T: an unsigned integer of an element's
/// size.
template <typename T>
void write_kv_kernel(const NativeLaunch& launch, WorkRange work, StopToken& stop);

}  // namespace metal_sdpa::cpu
