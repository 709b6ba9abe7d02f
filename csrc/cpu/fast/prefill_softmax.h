// From scores to weights: the online softmax of one tile of rows and one block of keys.
#pragma once

#include "cpu/fast/prefill_pairs.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// The states of a tile's rows: maxima in log2 units, sums in units of 2^maximum.
template <int kStep>
struct TileStates {
  float maximum[kStep];
  float sum[kStep];
  float mass[kStep];  ///< with pairs, as prefill_pairs.h says

  void reset() {
    for (int r = 0; r < kStep; ++r) {
      maximum[r] = -kInfinity;
      sum[r] = 0;
      mass[r] = 0;
    }
  }
};

/// Hides all but the visible ones of the `computed` keys of one row of scores; returns the maximum
/// of those.
inline float mask_and_maximum(float* scores, const SeenKeys& visible, int computed) {
  const int first = visible.begin / kLanes * kLanes;
  for (int j = 0; j < first; j += kLanes) store(scores + j, splat(-kInfinity));
  for (int j = first; j < visible.begin; ++j) scores[j] = -kInfinity;
  for (int j = visible.end; j % kLanes != 0; ++j) scores[j] = -kInfinity;
  Vec maximum = splat(-kInfinity);
  const int n_vecs = (visible.end + kLanes - 1) / kLanes;
  for (int j = first / kLanes; j < n_vecs; ++j) maximum = max(load(scores + j * kLanes), maximum);
  for (int j = n_vecs * kLanes; j < computed; j += kLanes) store(scores + j, splat(-kInfinity));
  return reduce_max(maximum);
}

/// Keys whose weights are added in chains, one in each lane of a panel: longer chains of equal
/// weights could be off by more than the accuracy bound leaves them.
inline constexpr int kWeightChain = 8 * kPanel;

/// Scores of `n_keys` keys, a whole number of panels, become weights 2^(score - reference), which
/// are added to `sum`.
inline void exponentiate(float* scores, float reference, int n_keys, float& sum) {
  const Vec offset = splat(reference);
  Vec total = splat(0.0f);
  for (int begin = 0; begin < n_keys; begin += kWeightChain) {
    const int end = smaller(begin + kWeightChain, n_keys);
    Vec sums[2] = {splat(0.0f), splat(0.0f)};
    for (int j = begin; j < end; j += kPanel) {
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        float* slots = scores + j + i * kLanes;
        const Vec weights = exp2(load(slots) - offset);
        sums[i] = sums[i] + weights;
        store(slots, weights);
      }
    }
    total = total + (sums[0] + sums[1]);
  }
  sum += reduce_add(total);
}

/// Turns a tile's scores into weights and moves its states on. Row r sees visible[r] of the block's
/// first `n_keys` keys. `factors` brings earlier numerators to the new
/// maxima. `block` and `heavy`, one for each row, are used with pairs.
template <typename T>
inline void softmax_tile(float* scores, const SeenKeys* visible, int n_rows, int n_keys,
                         const PairsBlock* block, HeavyPairs* heavy,
                         TileStates<kTileStep<T>>& states, float* factors) {
  constexpr int kStep = kTileStep<T>;
  const int computed = (n_keys + kPanel - 1) / kPanel * kPanel;
  float references[kStep];
  float most[kStep];
  float maxima[kStep];
  for (int r = 0; r < kStep; ++r) maxima[r] = states.maximum[r];
  for (int r = 0; r < kStep; ++r) most[r] = -kInfinity;
  for (int r = 0; r < n_rows; ++r) {
    most[r] = mask_and_maximum(scores + r * kScoreStep, visible[r], computed);
    if (most[r] > maxima[r]) maxima[r] = most[r];
  }
  for (int r = 0; r < kStep; r += kLanes) {
    // Never subtract -inf: a row that has seen nothing keeps weights of 0.
    const Vec reference = max(load(maxima + r), splat(-0x1.fffffep127f));
    const Vec factor = exp2(load(states.maximum + r) - reference);
    store(references + r, reference);
    store(factors + r, factor);
    store(states.maximum + r, load(maxima + r));
    store(states.sum + r, load(states.sum + r) * factor);
    if constexpr (kPairs<T>) {
      store(states.mass + r, load(states.mass + r) * factor);
      store(most + r, exp2(load(most + r) - reference));
    }
  }
  for (int r = 0; r < n_rows; ++r) {
    float* row = scores + r * kScoreStep;
    if constexpr (kPairs<T>) {
      exponentiate_pairs(row, *block, references[r], most[r], computed, states.sum[r],
                         states.mass[r], heavy[r]);
    } else {
      exponentiate(row, references[r], computed, states.sum[r]);
    }
  }
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
