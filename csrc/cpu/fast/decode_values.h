// Numerators of a span: weights times values, V as it lies in memory, a key's weight broadcast.
#pragma once

#include "cpu/fast/decode_softmax.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// Keys whose weighted values are added in registers, from zero, before they go to memory: it ends
/// a chain of f32 additions, and their rows of V stay in the L1 cache for the next columns.
inline constexpr int kValueKeys = 32;

/// Adds sums to numerators, or puts them there.
inline void add_to(float* numerators, Vec sums, bool first) {
  store(numerators, first ? sums : load(numerators) + sums);
}

/// One block of at most kValueKeys keys, from `begin` on.
template <typename T>
struct ValueBlock {
  const float* weights;  ///< of the tile, from the span's first key on
  Rows<const T> v;
  int begin;
  int end;
  int n_left;  ///< keys of the sequence, spans that follow included
  int value_dim;
  float* const* states;  ///< of the tile's rows
};

/// kVecs vectors of columns from `column` on; `tail` is their number where they are fewer than one
/// vector, else 0. Weights stay f32 for every dtype: rounding them to bf16 would cost a row whose
/// largest values hang on one small weight more than the output's own rounding leaves room for.
template <typename T, int kRows, int kVecs>
inline void add_values(const ValueBlock<T>& block, int column, int tail) {
  constexpr int kGroup = kGroupKeys<kRows>;
  Vec sums[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < kVecs; ++c) sums[r][c] = splat(0.0f);
  }
  const auto load_values = [&](int key, int vec) __attribute__((always_inline)) {
    const T* from = block.v[key] + column + vec * kLanes;
    if (kVecs == 1 && tail != 0) return load_first(from, tail);
    return load(from);
  };
  for (int key = block.begin; key < block.end; ++key) {
    const float* weights = block.weights + key / kGroup * kSums + key % kGroup;
    if (kBringNear<T, kRows>) {
      // The same columns of the next block, so that all of it is spread over the passes.
      if (key + kValueKeys < block.n_left) {
        bring_near(block.v[key + kValueKeys] + column, tail == 0 ? kVecs * kLanes : tail);
      }
      if (block.begin == 0 && column == 0) touch(block.v[key], block.value_dim);
    } else if (column == 0) {
      touch(block.v[key], block.value_dim);
    }
    Vec values[kVecs];
#pragma GCC unroll 16
    for (int c = 0; c < kVecs; ++c) values[c] = load_values(key, c);
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
}

/// As many whole vectors as registers hold at once, then half as many, and so on.
template <typename T, int kRows, int kVecs>
inline int add_whole_vectors(const ValueBlock<T>& block, int column) {
  for (; column + kVecs * kLanes <= block.value_dim; column += kVecs * kLanes) {
    add_values<T, kRows, kVecs>(block, column, 0);
  }
  if constexpr (kVecs > 1) {
    return add_whole_vectors<T, kRows, kVecs / 2>(block, column);
  } else {
    return column;
  }
}

/// All columns of the block.
template <typename T, int kRows>
inline void add_block(const ValueBlock<T>& block) {
  constexpr int kMostVecs = kGroupKeys<kRows> < 8 ? kGroupKeys<kRows> : 8;
  const int column = add_whole_vectors<T, kRows, kMostVecs>(block, 0);
  if (column < block.value_dim) add_values<T, kRows, 1>(block, column, block.value_dim - column);
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
