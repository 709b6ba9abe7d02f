// Numerators of a span: weights times values, V as it lies in memory, a key's weight broadcast.
#pragma once

#include "cpu/fast/decode_softmax.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// Whether values come near far ahead of n_rows rows. Nothing has to be widened in f32, so that
/// four rows have little to do unless the columns of a value take several turns.
template <typename T>
constexpr bool values_far_ahead(int n_rows, int value_dim) {
  constexpr int kLineSlots = kLineBytes / static_cast<int>(sizeof(T));
  const bool is_little = sizeof(T) == sizeof(float) && n_rows <= 4 && value_dim <= 128;
  return is_far_ahead(kLineSlots, n_rows) && !is_little;
}

/// Keys whose weighted values are added in registers, from zero, before they go to memory: it ends
/// a chain of f32 additions, and their rows of V stay in the L1 cache for the next columns. A
/// multiple of the keys of a step. n_rows are the rows of the first tile.
template <typename T>
inline int value_block_len(int value_dim, int n_rows) {
  const int row_bytes = value_dim * static_cast<int>(sizeof(T));
  const int most_bytes = values_far_ahead<T>(n_rows, value_dim) ? kAheadBytes : kLoadBytes;
  int keys = 32;
  while (keys > 4 && keys * row_bytes > most_bytes) keys /= 2;
  return keys;
}

/// Adds sums to numerators, or puts them there.
inline void add_to(float* numerators, Vec sums, bool first) {
  store(numerators, first ? sums : load(numerators) + sums);
}

/// One block of keys, from `begin` on.
template <typename T>
struct ValueBlock {
  const float* weights;  ///< of the tile, from the span's first key on
  Rows<const T> v;
  int begin;
  int end;
  int value_dim;
  float* const* states;  ///< of the tile's rows
};

/// Weights of kRows rows and kStepKeys consecutive keys, from the first of them on: read four at
/// once, which leaves the loads to the values.
template <int kRows>
class StepWeights {
 public:
  explicit StepWeights(const float* weights) {
#pragma GCC unroll 8
    for (int i = 0; i < kFours; ++i) fours_[i] = load_four(weights + i * kFourStep);
  }

  /// The weight of row `row` and the step's key `key`, in all lanes.
  Vec splat(int row, int key) const {
    const int slot = kGroup < 4 ? row * kGroup + key : 4 * row + key;
    const Vec four = fours_[slot / 4];
    switch (slot % 4) {
      case 0:
        return splat_lane<0>(four);
      case 1:
        return splat_lane<1>(four);
      case 2:
        return splat_lane<2>(four);
      default:
        return splat_lane<3>(four);
    }
  }

 private:
  static constexpr int kGroup = kGroupKeys<kRows>;
  static constexpr int kFours = kGroup < 4 ? (kRows * kGroup + 3) / 4 : kRows;
  static constexpr int kFourStep = kGroup < 4 ? 4 : kGroup;

  Vec fours_[kFours];
};

/// kVecs vectors of columns from `column` on; `tail` is their number where they are fewer than one
/// vector, else 0. Weights stay f32 for every dtype: rounding them to bf16 would cost a row whose
/// largest values hang on one small weight more than the output's own rounding leaves room for.
template <typename T, int kRows, int kVecs>
[[gnu::always_inline]] inline void add_values(const ValueBlock<T>& block, int column, int tail,
                                              NearRows& to_near) {
  NearRows near = to_near;  // in registers
  constexpr int kGroup = kGroupKeys<kRows>;
  constexpr int kStep = kStepKeys<kRows>;
  Vec sums[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < kVecs; ++c) sums[r][c] = splat(0.0f);
  }
  const auto load_values = [&](int key, Vec(&values)[kVecs]) __attribute__((always_inline)) {
    const T* from = block.v[key] + column;
#pragma GCC unroll 16
    for (int c = 0; c < kVecs; ++c) {
      values[c] = kVecs == 1 && tail != 0 ? load_first(from, tail) : load(from + c * kLanes);
    }
  };
  constexpr int kKeyBytes = kVecs * kLanes * static_cast<int>(sizeof(T));
  constexpr bool kByKey = kKeyBytes >= kLineBytes;
  const auto weights_of = [&](unsigned key) {
    return block.weights + key / kGroup * kSums + key % kGroup;
  };
  int key = block.begin;
  for (; key + kStep <= block.end; key += kStep) {
    if constexpr (!kByKey) near.bring_lines<Prefetch, kLinesOf<kStep * kKeyBytes>>();
    const StepWeights<kRows> weights(weights_of(static_cast<unsigned>(key)));
#pragma GCC unroll 4
    for (int j = 0; j < kStep; ++j) {
      if constexpr (kByKey) near.bring_lines<Prefetch, kLinesOf<kKeyBytes>>();
      Vec values[kVecs];
      load_values(key + j, values);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vec weight = weights.splat(r, j);
#pragma GCC unroll 16
        for (int c = 0; c < kVecs; ++c) sums[r][c] = fma(values[c], weight, sums[r][c]);
      }
    }
  }
  for (; key < block.end; ++key) {
    near.bring_lines<Prefetch, kLinesOf<kKeyBytes>>();
    const float* weights = weights_of(static_cast<unsigned>(key));
    Vec values[kVecs];
    load_values(key, values);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec weight = splat(weights[r * kGroup]);
#pragma GCC unroll 16
      for (int c = 0; c < kVecs; ++c) sums[r][c] = fma(values[c], weight, sums[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    float* numerators = block.states[r] + kStateNumerators + column;
#pragma GCC unroll 16
    for (int c = 0; c < kVecs; ++c) {
      add_to(numerators + c * kLanes, sums[r][c], block.begin == 0);
    }
  }
  to_near = near;
}

/// As many whole vectors as registers hold at once, then half as many, and so on.
template <typename T, int kRows, int kVecs>
inline int add_whole_vectors(const ValueBlock<T>& block, int column, NearRows& near) {
  for (; column + kVecs * kLanes <= block.value_dim; column += kVecs * kLanes) {
    add_values<T, kRows, kVecs>(block, column, 0, near);
  }
  if constexpr (kVecs > 1) {
    return add_whole_vectors<T, kRows, kVecs / 2>(block, column, near);
  } else {
    return column;
  }
}

/// All columns of the block. Meanwhile `near` comes near.
template <typename T, int kRows>
inline void add_block(const ValueBlock<T>& block, NearRows near) {
  if (!values_far_ahead<T>(kRows, block.value_dim)) near.bring_all<Load>();
  constexpr int kMostVecs = kGroupKeys<kRows> < 8 ? kGroupKeys<kRows> : 8;
  const int column = add_whole_vectors<T, kRows, kMostVecs>(block, 0, near);
  if (column < block.value_dim) {
    add_values<T, kRows, 1>(block, column, block.value_dim - column, near);
  }
  near.bring_all<Prefetch>();
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
