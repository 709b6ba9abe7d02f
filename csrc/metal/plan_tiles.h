// Plans of sdpa_decode, sdpa_prefill and sdpa_merge.
#pragma once

#include "metal/facts.h"
#include "metal_sdpa/plan.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa {

/// Whether the tile kernels take the problem's head dims: D a multiple of 8, Dv the same, at most
/// SDPA_TILE_MAX_HEAD_DIM.
bool tiles_take(const SdpaProblem& problem);

/// One step a cut, and where a row has several spans the merge of their states after it.
Plan plan_tiles(const SdpaProblem& problem, const MetalFacts& facts, bool prefill);

}  // namespace metal_sdpa
