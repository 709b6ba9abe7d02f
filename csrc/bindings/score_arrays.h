// The arrays that change scores: mask, sinks, ALiBi slopes.
#pragma once

#include "array.h"
#include "metal_sdpa/sdpa.h"
#include "sdpa_call.h"

namespace metal_sdpa::python {

/// Described where the call gives them, with four axes of which those that stretch have an extent
/// of 1 and a stride of 0.
struct ScoreArrays {
  Array mask, sinks, alibi_slopes;
};

inline bool has_score_arrays(const SdpaCall& call) {
  return call.mask != nullptr || call.sinks != nullptr || call.alibi_slopes != nullptr;
}

/// What a mask is broadcast to: the last `rank` of four extents, of which the last is keys.
struct MaskExtents {
  int rank = 4;
  std::int64_t extents[4] = {};
  bool takes_more_keys = false;  ///< a mask may have entries for more keys
};

/// Describes them and sets their layouts in `problem`, whose shape and dtype are set.
void read_score_arrays(const SdpaCall& call, const MaskExtents& mask, SdpaProblem& problem,
                       ScoreArrays& arrays);

}  // namespace metal_sdpa::python
