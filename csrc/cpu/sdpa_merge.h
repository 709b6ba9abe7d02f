// Combines the states of spans into the output.
#pragma once

#include "metal_sdpa/native_kernel.h"

namespace metal_sdpa::cpu {

/// Threadgroups (batch, n_heads, ceil(seq_len / SDPA_TILE_Q)). Reads the partial states of
/// SDPA_BUFFER_PARTIAL_O and SDPA_BUFFER_PARTIAL_MS in span order, writes output and, where bound,
/// the log-sum-exp. Row i has ceil(visible keys / span_len) spans. T: float, F16 or BF16.
template <typename T>
void sdpa_merge_kernel(const NativeLaunch& launch, WorkRange work, StopToken& stop);

}  // namespace metal_sdpa::cpu
