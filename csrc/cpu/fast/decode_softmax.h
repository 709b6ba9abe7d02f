// From scores to weights: the softmax of one tile of rows over all keys of a span at once, so that
// nothing is ever rescaled inside a span.
#pragma once

#include "cpu/fast/decode_dot.h"
#include "cpu/fast/sdpa_decode.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// Slots after which rows repeat, whole groups and whole vectors: one is a multiple of the other.
template <typename T, int kRows>
inline constexpr int kPeriod = larger(DotShape<T, kRows>::kGroupSlots, kLanes);

/// Slots of a span's scores, an even number of periods: the softmax takes two at once. As two
/// periods are at most 32 keys, these are no more than span_len keys need.
template <typename T, int kRows>
inline int score_slots(int n_keys) {
  constexpr int kGroupSlots = DotShape<T, kRows>::kGroupSlots;
  static_assert(kPeriod<T, kRows> % kGroupSlots == 0 && kPeriod<T, kRows> % kLanes == 0);
  const int slots = (n_keys + kGroupKeys - 1) / kGroupKeys * kGroupSlots;
  constexpr int kTwo = 2 * kPeriod<T, kRows>;
  return (slots + kTwo - 1) / kTwo * kTwo;
}

/// Hides keys begin..end of one row from its softmax.
template <int kGroupSlots>
inline void hide_keys(float* scores, int row, int begin, int end) {
  for (int key = begin; key < end; ++key) {
    scores[key / kGroupKeys * kGroupSlots + row * kGroupKeys + key % kGroupKeys] = -kInfinity;
  }
}

/// Calls run(slot) for those slots of a period that belong to row `row`.
template <int kGroupSlots, int kSlots, typename Run>
inline void for_slots_of(int row, const Run& run) {
  for (int group = 0; group < kSlots; group += kGroupSlots) {
    for (int j = 0; j < kGroupKeys; ++j) run(group + row * kGroupKeys + j);
  }
}

/// The maximum over a period's slots of row `row`.
template <int kGroupSlots, int kSlots>
inline float row_maximum(const float* slots, int row) {
  float most = -kInfinity;
  for_slots_of<kGroupSlots, kSlots>(row, [&](int s) { most = larger(slots[s], most); });
  return most;
}

/// Additions to one lane's sum of weights in a row: longer chains of equal weights could be off by
/// more than the accuracy bound leaves them.
inline constexpr int kWeightChain = 8;

/// Scores in every kSlots-th vector from `scores` on, two at a time, become weights. Returns their
/// sum.
template <int kSlots>
inline Vec exponentiate_lanes(float* scores, int n_slots, Vec reference) {
  Vec total = splat(0.0f);
  for (int begin = 0; begin < n_slots; begin += 2 * kWeightChain * kSlots) {
    const int end = smaller(begin + 2 * kWeightChain * kSlots, n_slots);
    Vec sum = splat(0.0f);
    for (int i = begin; i < end; i += 2 * kSlots) {
      const Vec first = exp2(load(scores + i) - reference);
      const Vec second = exp2(load(scores + i + kSlots) - reference);
      sum = sum + (first + second);
      store(scores + i, first);
      store(scores + i + kSlots, second);
    }
    total = total + sum;
  }
  return total;
}

/// Turns scores [group][row][key] into weights at the same place and writes maxima and sums of the
/// rows' states. Row r sees visible[r] of the keys.
template <typename T, int kRows>
inline void softmax_span(float* scores, int n_keys, const SeenKeys* visible, float* const* states) {
  constexpr int kGroupSlots = DotShape<T, kRows>::kGroupSlots;
  constexpr int kSlots = kPeriod<T, kRows>;
  const int n_slots = score_slots<T, kRows>(n_keys);
  for (int r = 0; r < kRows; ++r) {
    hide_keys<kGroupSlots>(scores, r, 0, visible[r].begin);
    hide_keys<kGroupSlots>(scores, r, visible[r].end, n_slots / kGroupSlots * kGroupKeys);
  }

  alignas(64) float slots[kSlots];
  for (int s = 0; s < kSlots; s += kLanes) {
    Vec maximum = splat(-kInfinity);
    for (int i = s; i < n_slots; i += kSlots) maximum = max(load(scores + i), maximum);
    store(slots + s, maximum);
  }
  for (int r = 0; r < kRows; ++r) {
    const float most = row_maximum<kGroupSlots, kSlots>(slots, r);
    states[r][kStateMaximum] = most;
    // Never subtract -inf: a row that sees nothing has weights of 0.
    const float reference = most == -kInfinity ? 0.0f : most;
    for_slots_of<kGroupSlots, kSlots>(r, [&](int s) { slots[s] = reference; });
  }

  for (int s = 0; s < kSlots; s += kLanes) {
    store(slots + s, exponentiate_lanes<kSlots>(scores + s, n_slots, load(slots + s)));
  }
  for (int r = 0; r < kRows; ++r) {
    float sum = 0;
    for_slots_of<kGroupSlots, kSlots>(r, [&](int s) { sum += slots[s]; });
    states[r][kStateSum] = sum;
  }
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
