// What the lanes of a simdgroup find out together.
#ifndef METAL_SDPA_LANES_H
#define METAL_SDPA_LANES_H

#include <metal_stdlib>

namespace metal_sdpa {

constant constexpr int kLanes = 32;

/// Sum over the lanes, in one order, in every lane.
inline float sum_of_lanes(float value) {
  for (ushort mask = 1; mask < kLanes; mask *= 2) value += metal::simd_shuffle_xor(value, mask);
  return value;
}

}  // namespace metal_sdpa

#endif  // METAL_SDPA_LANES_H
