// Scores of a few query rows against many keys, both as they lie in memory: dot products along D in
// vector registers, several keys and rows at once, and one tree of shuffles for all of their sums.
#pragma once

#include "cpu/fast/decode_near.h"
#include "cpu/fast/prefill_pack.h"
#include "cpu/fast/sdpa_decode.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// Sums that the inner loops keep in registers.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kSums = 16;
#else
inline constexpr int kSums = 8;
#endif

/// Query rows of a tile: kMostRows, or up to kFewRows.
inline constexpr int kMostRows = kDecodeTileRows;
inline constexpr int kFewRows = kMostRows / 2;

/// Keys of a group: the kSums slots of its scores are [row][key]. Three rows leave slots unused.
template <int kRows>
inline constexpr int kGroupKeys = kRows == 3 ? kSums / 4 : kSums / kRows;

/// Keys whose rows of memory are read side by side.
template <int kRows>
inline constexpr int kStepKeys = kGroupKeys<kRows> < 4 ? kGroupKeys<kRows> : 4;

/// Elements of kLanes slots.
template <typename T>
inline constexpr int kUnit = kPerSlot<T> * kLanes;

template <typename T>
inline Vec add_product(Vec a, Vec b, Vec sum) {
  if constexpr (kPairs<T>) {
    return dot_pairs(sum, a, b);
  } else {
    return fma(a, b, sum);
  }
}

/// Whether keys come near far ahead of n_rows rows.
template <typename T>
constexpr bool keys_far_ahead(int n_rows) {
  return is_far_ahead(kLineBytes / static_cast<int>(sizeof(T)) / kPerSlot<T>, n_rows);
}

/// Keys of a block, a whole number of groups for any tile. All tiles of n_rows rows meet it before
/// the next one, and should find it in the L1 cache.
template <typename T>
inline int key_block_len(int head_dim, int n_rows) {
  const int row_bytes = head_dim * static_cast<int>(sizeof(T));
  const bool is_one_tile = n_rows <= kFewRows || n_rows == kMostRows;
  int keys = kAheadBytes / kLoadBytes * 64;
  const int most_bytes = is_one_tile && keys_far_ahead<T>(n_rows) ? kAheadBytes : kLoadBytes;
  while (keys > kSums && keys * row_bytes > most_bytes) keys /= 2;
  return keys;
}

/// sums[row * kGroupKeys + j] = product of query row `row` and the key in keys[j].
template <typename T, int kRows>
inline void add_products(const float* q, const T* const (&keys)[kStepKeys<kRows>], int head_dim,
                         NearRows& near, Vec* sums) {
  constexpr int kKeys = kStepKeys<kRows>;
  // Sums of this step alone, so that the compiler keeps them in registers.
  Vec own[kRows][kKeys];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kKeys; ++j) own[r][j] = splat(0.0f);
  }
  for (int d = 0; d < head_dim; d += kUnit<T>) {
    near.bring_lines<Prefetch, kLinesOf<kKeys * kUnit<T> * sizeof(T)>>();
    Vec units[kKeys];
    if (d + kUnit<T> <= head_dim) {
#pragma GCC unroll 4
      for (int j = 0; j < kKeys; ++j) units[j] = load_slots(keys[j] + d);
    } else {
#pragma GCC unroll 4
      for (int j = 0; j < kKeys; ++j) units[j] = load_slots_first(keys[j] + d, head_dim - d);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec query = load(q + r * kLanes);
#pragma GCC unroll 4
      for (int j = 0; j < kKeys; ++j) own[r][j] = add_product<T>(units[j], query, own[r][j]);
    }
    q += kRows * kLanes;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kKeys; ++j) sums[r * kGroupKeys<kRows> + j] = own[r][j];
  }
}

/// Scores times `scale` of kRows query rows, packed [unit][row][kLanes], and keys begin..end, a
/// whole number of groups; keys at or past `n_keys` repeat the last one below it. Scores are
/// [group][row][key]. Meanwhile `near` comes near.
template <typename T, int kRows>
[[gnu::noinline]] inline void score_keys(const float* q, const Rows<const T>& k, int begin, int end,
                                         int n_keys, int head_dim, Vec scale, NearRows near,
                                         float* scores) {
  constexpr int kGroup = kGroupKeys<kRows>;
  constexpr int kStep = kStepKeys<kRows>;
  if (!keys_far_ahead<T>(kRows)) near.bring_all<Load>();
  for (int group = begin; group < end; group += kGroup) {
    Vec sums[kSums];
#pragma GCC unroll 16
    for (int s = 0; s < kSums; ++s) sums[s] = splat(0.0f);
#pragma GCC unroll 4
    for (int step = 0; step < kGroup; step += kStep) {
      const T* keys[kStep];
#pragma GCC unroll 4
      for (int j = 0; j < kStep; ++j) keys[j] = k[smaller(group + step + j, n_keys - 1)];
      add_products<T, kRows>(q, keys, head_dim, near, sums + step);
    }
    float* to = scores + group / kGroup * kSums;
#pragma GCC unroll 4
    for (int s = 0; s < kSums; s += kLanes) store(to + s, sums_of_lanes(sums + s) * scale);
  }
  near.bring_all<Prefetch>();
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
