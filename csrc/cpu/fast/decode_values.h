// Numerators of a span: weights times values, V as it lies in memory, a key's weight broadcast.
#pragma once

#include "cpu/fast/decode_softmax.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// Keys whose weighted values are added in registers, from zero, before they go to memory: it ends
/// a chain of f32 additions, and their rows of V stay in the L1 cache for the next columns. A whole
/// number of pairs of groups.
inline constexpr int kValueKeys = 32;

/// Elements of V that one column unit takes: one vector of sums, or two where V is in pairs.
template <typename T>
inline constexpr int kUnitSums = kPairs<T> ? 2 : 1;

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
  int n_keys;            ///< of the span
  sdpa_i64 ahead_bytes;  ///< how far ahead to prefetch
  float* const* states;  ///< of the tile's rows
};

/// Columns column..column + kUnits * kUnit of the block; `tail` is their number where they are
/// fewer than one unit, else 0.
template <typename T, int kRows, int kUnits>
inline void add_values(const ValueBlock<T>& block, int column, int tail) {
  constexpr int kGroup = kGroupKeys<kRows>;
  constexpr int kVecs = kUnits * kUnitSums<T>;
  Vec sums[kRows][kVecs];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < kVecs; ++c) sums[r][c] = splat(0.0f);
  }
  const auto load_values = [&](int key, int unit) __attribute__((always_inline)) {
    const T* from = block.v[key] + column + unit * kUnit<T>;
    if (kUnits == 1 && tail != 0) return load_unit_first(from, tail);
    prefetch(reinterpret_cast<std::uintptr_t>(from) +
             static_cast<std::uintptr_t>(block.ahead_bytes));
    return load_unit(from);
  };
  if constexpr (kPairs<T>) {
    for (int begin = block.begin; begin < block.end; begin += 2 * kGroup) {
      const float* weights = block.weights + begin / (2 * kGroup) * kSums;
      const int n_even = smaller(kGroup, block.n_keys - begin);
      const int n_odd = block.n_keys - begin - kGroup;
      for (int j = 0; j < n_even; ++j) {
        Vec values[kVecs];
#pragma GCC unroll 8
        for (int u = 0; u < kUnits; ++u) {
          const Vec even = load_values(begin + j, u);
          // A slot past the last key may hold anything, and 0 times NaN is NaN.
          const Vec odd = j < n_odd ? load_values(begin + kGroup + j, u) : splat(0.0f);
          zip_pairs(even, odd, values[2 * u], values[2 * u + 1]);
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const Vec weight = splat(weights[r * kGroup + j]);
#pragma GCC unroll 16
          for (int c = 0; c < kVecs; ++c) sums[r][c] = dot_pairs(sums[r][c], values[c], weight);
        }
      }
    }
  } else {
    for (int key = block.begin; key < block.end; ++key) {
      const float* weights = block.weights + key / kGroup * kSums + key % kGroup;
      Vec values[kVecs];
#pragma GCC unroll 16
      for (int c = 0; c < kVecs; ++c) values[c] = load_values(key, c);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Vec weight = splat(weights[r * kGroup]);
#pragma GCC unroll 16
        for (int c = 0; c < kVecs; ++c) sums[r][c] = fma(values[c], weight, sums[r][c]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    float* numerators = block.states[r] + kStateNumerators + column;
#pragma GCC unroll 16
    for (int c = 0; c < kVecs; c += kUnitSums<T>) {
      if constexpr (kPairs<T>) {
        Vec low, high;
        interleave(sums[r][c], sums[r][c + 1], low, high);
        add_to(numerators + c * kLanes, low, block.begin == 0);
        add_to(numerators + (c + 1) * kLanes, high, block.begin == 0);
      } else {
        add_to(numerators + c * kLanes, sums[r][c], block.begin == 0);
      }
    }
  }
}

/// As many whole units as registers hold at once, then half as many, and so on.
template <typename T, int kRows, int kUnits>
inline int add_whole_units(const ValueBlock<T>& block, int column, int value_dim) {
  for (; column + kUnits * kUnit<T> <= value_dim; column += kUnits * kUnit<T>) {
    add_values<T, kRows, kUnits>(block, column, 0);
  }
  if constexpr (kUnits > 1) {
    return add_whole_units<T, kRows, kUnits / 2>(block, column, value_dim);
  } else {
    return column;
  }
}

/// All columns of the block.
template <typename T, int kRows>
inline void add_block(const ValueBlock<T>& block, int value_dim) {
  constexpr int kMostVecs = kGroupKeys<kRows> < 8 ? kGroupKeys<kRows> : 8;
  constexpr int kMostUnits = kMostVecs / kUnitSums<T>;
  const int column = add_whole_units<T, kRows, kMostUnits>(block, 0, value_dim);
  if (column < value_dim) add_values<T, kRows, 1>(block, column, value_dim - column);
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
