// Scores of a few query rows against many keys, both as they lie in memory: dot products along D in
// vector registers, several keys and rows at once, and one transposition for all of their sums.
#pragma once

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

/// Loads a byte of each cache line of a row of n elements. Memory gives its full rate only to loads
/// that miss in the order of addresses, best from one instruction. What follows goes through
/// several rows at once, or through a part of each: it finds in the L1 cache what was touched just
/// before.
template <typename T>
inline void touch(const T* row, int n) {
  const char* bytes = reinterpret_cast<const char*>(row);
  const std::size_t n_bytes = static_cast<std::size_t>(n) * sizeof(T);
#pragma GCC unroll 1
  for (std::size_t i = 0; i < n_bytes; i += 64) {
    static_cast<void>(*static_cast<const volatile char*>(bytes + i));
  }
}

/// Brings a row of n elements from memory into the L2 cache, without waiting. Into the L1 cache,
/// the few registers for its misses would limit the rate: half of this.
template <typename T>
inline void bring_near(const T* row, int n) {
  const char* bytes = reinterpret_cast<const char*>(row);
  for (int i = 0; i < n * static_cast<int>(sizeof(T)); i += 64) {
    __builtin_prefetch(bytes + i, 0, 2);
  }
}

/// Whether arithmetic takes about as long as loading, so that each has to go on during the other:
/// memory is brought near some time ahead. Fewer rows wait for memory anyhow, and touching is the
/// faster way then, if not by much.
template <typename T, int kRows>
inline constexpr bool kBringNear = kRows > static_cast<int>(sizeof(T));

/// Bytes from what is multiplied to what is brought near: half as many do as well, twice as many
/// leave too little room in the caches.
inline constexpr int kNearBytes = 8192;

/// sums[row * kGroupKeys + j] = product of query row `row` and the key in keys[j].
template <typename T, int kRows>
inline void add_products(const float* q, int q_step, const T* const (&keys)[kStepKeys<kRows>],
                         int head_dim, Vec* sums) {
  constexpr int kKeys = kStepKeys<kRows>;
  // Sums of this step alone, so that the compiler keeps them in registers.
  Vec own[kRows][kKeys];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kKeys; ++j) own[r][j] = splat(0.0f);
  }
  for (int d = 0; d < head_dim; d += kUnit<T>) {
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
      const Vec query = load(q + r * q_step + d / kPerSlot<T>);
#pragma GCC unroll 4
      for (int j = 0; j < kKeys; ++j) own[r][j] = add_product<T>(units[j], query, own[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kKeys; ++j) sums[r * kGroupKeys<kRows> + j] = own[r][j];
  }
}

/// Keys that all tiles of rows meet before the next ones: they stay in the L1 cache meanwhile.
inline constexpr int kScoreKeys = 64;

/// Bytes of K to touch at once: half as many or twice as many cost up to a quarter of the rate.
inline constexpr int kTouchBytes = 4096;

/// Scores times `scale` of kRows query rows and keys begin..end, a whole number of groups; keys at
/// or past `n_keys` repeat the last one below it. Scores are [group][row][key]. A function of its
/// own: inlined, its loads came in another order and at half the rate.
template <typename T, int kRows>
[[gnu::noinline]] inline void score_keys(const float* q, int q_step, const Rows<const T>& k,
                                         int begin, int end, int n_keys, int head_dim, Vec scale,
                                         float* scores) {
  constexpr int kGroup = kGroupKeys<kRows>;
  constexpr int kStep = kStepKeys<kRows>;
  const int ahead = kNearBytes / (head_dim * static_cast<int>(sizeof(T))) + kGroup;
  if (kBringNear<T, kRows> && begin == 0) {
    for (int j = 0; j < smaller(ahead, n_keys); ++j) touch(k[j], head_dim);
  }
  int touched = kGroup;
  while (touched < kScoreKeys && touched * head_dim * static_cast<int>(sizeof(T)) < kTouchBytes) {
    touched *= 2;
  }
  for (int group = begin; group < end; group += kGroup) {
    if (kBringNear<T, kRows>) {
      for (int j = group + ahead; j < smaller(group + ahead + kGroup, n_keys); ++j) {
        bring_near(k[j], head_dim);
      }
    } else if (group % touched == 0) {
      for (int j = group; j < group + touched; ++j) touch(k[smaller(j, n_keys - 1)], head_dim);
    }
    Vec sums[kSums];
#pragma GCC unroll 16
    for (int s = 0; s < kSums; ++s) sums[s] = splat(0.0f);
#pragma GCC unroll 4
    for (int step = 0; step < kGroup; step += kStep) {
      const T* keys[kStep];
#pragma GCC unroll 4
      for (int j = 0; j < kStep; ++j) keys[j] = k[smaller(group + step + j, n_keys - 1)];
      add_products<T, kRows>(q, q_step, keys, head_dim, sums + step);
    }
    float* to = scores + group / kGroup * kSums;
#pragma GCC unroll 4
    for (int s = 0; s < kSums; s += kLanes) store(to + s, sums_of_lanes(sums + s) * scale);
  }
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
