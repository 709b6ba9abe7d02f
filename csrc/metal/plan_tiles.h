// The tile kernels, sdpa_decode and sdpa_prefill, as the planner sees them.
#pragma once

#include "metal/plan_steps.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa {

/// Whether the tile kernels take the problem's head dims: D a multiple of 8, Dv the same, at most
/// SDPA_TILE_MAX_HEAD_DIM.
bool tiles_take(const SdpaProblem& problem);

/// The tile kernel of sequences with `rows` query rows, in a problem that they take.
KernelFacts tile_kernel(const SdpaProblem& problem, std::int64_t rows, bool prefill);

}  // namespace metal_sdpa
