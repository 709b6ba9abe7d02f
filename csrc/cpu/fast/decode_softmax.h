// From scores to weights: the softmax of one tile of rows over all keys of a span at once, so that
// nothing is ever rescaled inside a span.
#pragma once

#include "cpu/fast/decode_dot.h"
#include "cpu/fast/sdpa_decode.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// Groups of a span's scores, an even number: the softmax takes two at once.
template <int kRows>
inline int group_count(int n_keys) {
  const int groups = (n_keys + kGroupKeys<kRows> - 1) / kGroupKeys<kRows>;
  return (groups + 1) / 2 * 2;
}

/// Hides keys visible..computed of one row from its softmax.
template <int kRows>
inline void hide_keys(float* scores, int row, int visible, int computed) {
  constexpr int kGroup = kGroupKeys<kRows>;
  for (int key = visible; key < computed; ++key) {
    scores[key / kGroup * kSums + row * kGroup + key % kGroup] = -kInfinity;
  }
}

/// Lanes of a group's slots, row by row, to one value a row.
template <int kRows>
inline void max_of_rows(const float (&slots)[kSums], float (&rows)[kMostRows]) {
  for (int r = 0; r < kRows; ++r) {
    rows[r] = -kInfinity;
    for (int j = 0; j < kGroupKeys<kRows>; ++j) {
      const float slot = slots[r * kGroupKeys<kRows> + j];
      if (slot > rows[r]) rows[r] = slot;
    }
  }
}
template <int kRows>
inline float sum_of_row(const float (&slots)[kSums], int row) {
  float sum = 0;
  for (int j = 0; j < kGroupKeys<kRows>; ++j) sum += slots[row * kGroupKeys<kRows> + j];
  return sum;
}

/// Turns scores [group][row][key] into weights at the same place and writes maxima and sums of the
/// rows' states. visible[r] keys of the span are seen by row r.
template <int kRows>
inline void softmax_span(float* scores, int n_keys, const int* visible, float* const* states) {
  const int n_groups = group_count<kRows>(n_keys);
  const int n_slots = n_groups * kSums;
  for (int r = 0; r < kRows; ++r) {
    hide_keys<kRows>(scores, r, visible[r], n_groups * kGroupKeys<kRows>);
  }

  float slots[kSums];
  for (int s = 0; s < kSums; s += kLanes) {
    Vec maximum = splat(-kInfinity);
    for (int i = s; i < n_slots; i += kSums) maximum = max(load(scores + i), maximum);
    store(slots + s, maximum);
  }
  float maxima[kMostRows];
  max_of_rows<kRows>(slots, maxima);
  for (int s = 0; s < kSums; ++s) {
    const int r = s / kGroupKeys<kRows>;
    // Never subtract -inf: a row that sees nothing has weights of 0. Unused slots are 0.
    slots[s] = r < kRows && maxima[r] != -kInfinity ? maxima[r] : 0.0f;
  }

  float sums[kSums];
  for (int s = 0; s < kSums; s += kLanes) {
    const Vec reference = load(slots + s);
    Vec sum = splat(0.0f);
    for (int i = s; i < n_slots; i += 2 * kSums) {
      const Vec first = exp2(load(scores + i) - reference);
      const Vec second = exp2(load(scores + i + kSums) - reference);
      sum = sum + (first + second);
      store(scores + i, first);
      store(scores + i + kSums, second);
    }
    store(sums + s, sum);
  }
  for (int r = 0; r < kRows; ++r) {
    states[r][kStateMaximum] = maxima[r];
    states[r][kStateSum] = sum_of_row<kRows>(sums, r);
  }
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
