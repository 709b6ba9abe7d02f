// From scores to weights: the online softmax of one tile of rows and one block of keys.
#pragma once

#include "cpu/fast/prefill_tile.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// The states of a tile's rows: maxima in log2 units, sums in units of 2^maximum.
struct TileStates {
  float maximum[kTileStep];
  float sum[kTileStep];

  void reset() {
    for (int r = 0; r < kTileStep; ++r) {
      maximum[r] = -kInfinity;
      sum[r] = 0;
    }
  }
};

/// Hides keys visible..computed of one row of scores; returns the maximum of the others.
inline float mask_and_maximum(float* scores, int visible, int computed) {
  for (int j = visible; j % kLanes != 0; ++j) scores[j] = -kInfinity;
  Vec maximum = splat(-kInfinity);
  const int n_vecs = (visible + kLanes - 1) / kLanes;
  for (int j = 0; j < n_vecs; ++j) maximum = max(load(scores + j * kLanes), maximum);
  for (int j = n_vecs * kLanes; j < computed; j += kLanes) store(scores + j, splat(-kInfinity));
  return reduce_max(maximum);
}

/// What is nearest to v with 8 bits of significand, as bf16 has. T. J. Dekker's splitting ("A
/// floating-point technique for extending the available precision", 1971) of 24 bits.
inline Vec upper_bits(Vec v) {
  const Vec scaled = v * splat(65537.0f);
  return scaled - (scaled - v);
}

/// Scores of `n_keys` keys, a whole number of panels, become weights 2^(score - reference), in
/// slots at the same place. With pairs a weight is the sum of two bf16, the lower one at the same
/// place in `lower`: one alone would cost a row whose largest values hang on one small weight more
/// than the output's own rounding leaves room for. Adds the weights to `sum`.
template <typename T>
inline void exponentiate(float* scores, float* lower, float reference, int n_keys, float& sum) {
  const Vec offset = splat(reference);
  Vec sums[2] = {splat(0.0f), splat(0.0f)};
  for (int j = 0; j < n_keys; j += kPanel) {
    const Vec low = exp2(load(scores + j) - offset);
    const Vec high = exp2(load(scores + j + kLanes) - offset);
    sums[0] = sums[0] + low;
    sums[1] = sums[1] + high;
    if constexpr (kPairs<T>) {
      const Vec low_upper = upper_bits(low);
      const Vec high_upper = upper_bits(high);
      store(scores + j / 2, round_pairs(low_upper, high_upper));
      store(lower + j / 2, round_pairs(low - low_upper, high - high_upper));
    } else {
      store(scores + j, low);
      store(scores + j + kLanes, high);
    }
  }
  sum += reduce_add(sums[0] + sums[1]);
}

/// Turns a tile's scores into weights and moves its states on. visible[r] keys of the block are
/// seen by row r; `n_keys` is the most of them. `factors` brings earlier numerators to the new
/// maxima.
template <typename T>
inline void softmax_tile(float* scores, float* lower, const int* visible, int n_rows, int n_keys,
                         TileStates& states, float* factors) {
  const int computed = (n_keys + kPanel - 1) / kPanel * kPanel;
  float references[kTileStep];
  float maxima[kTileStep];
  for (int r = 0; r < kTileStep; ++r) maxima[r] = states.maximum[r];
  for (int r = 0; r < n_rows; ++r) {
    const float maximum = mask_and_maximum(scores + r * kMaxBlock, visible[r], computed);
    if (maximum > maxima[r]) maxima[r] = maximum;
  }
  for (int r = 0; r < kTileStep; r += kLanes) {
    // Never subtract -inf: a row that has seen nothing keeps weights of 0.
    const Vec reference = max(load(maxima + r), splat(-0x1.fffffep127f));
    const Vec factor = exp2(load(states.maximum + r) - reference);
    store(references + r, reference);
    store(factors + r, factor);
    store(states.maximum + r, load(maxima + r));
    store(states.sum + r, load(states.sum + r) * factor);
  }
  for (int r = 0; r < n_rows; ++r) {
    exponentiate<T>(scores + r * kMaxBlock, lower + r * kMaxBlock, references[r], computed,
                    states.sum[r]);
  }
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
