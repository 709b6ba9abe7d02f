// Operands of the tile products, packed so that the inner loops read memory in order. A slot is 4
// bytes: one f32, or two bf16 where products are of pairs. `depth` counts slots along the sum.
#pragma once

#include "cpu/fast/launch_view.h"
#include "cpu/fast/simd.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// Columns of a packed panel.
inline constexpr int kPanel = 2 * kLanes;

/// Whether products of T are of bf16 pairs.
template <typename T>
inline constexpr bool kPairs = false;
template <>
inline constexpr bool kPairs<BF16> = kHasPairDot;

template <typename T>
inline constexpr int kPerSlot = kPairs<T> ? 2 : 1;

/// Slots for `n` elements.
template <typename T>
inline int slots_for(int n) {
  return (n + kPerSlot<T> - 1) / kPerSlot<T>;
}

/// kLanes slots.
template <typename T>
inline Vec load_slots(const T* p) {
  if constexpr (kPairs<T>) {
    return load_pairs(p);
  } else {
    return load(p);
  }
}

/// The slots of `n` elements, and zeros.
template <typename T>
inline Vec load_slots_first(const T* p, int n) {
  if constexpr (kPairs<T>) {
    return load_pairs_first(p, n);
  } else {
    return load_first(p, n);
  }
}

/// What stands in for rows that are not there: as long as the longest row of any element.
alignas(64) inline constexpr float kZeroRow[1024] = {};

template <typename T>
inline const T* zero_row() {
  return reinterpret_cast<const T*>(kZeroRow);
}

/// packed[slot * step + r] = slots of rows[r], for kLanes rows. Meanwhile the rows at `next` come
/// near: the processor does not guess the pattern of lines that a transposition reads.
template <typename T>
inline void pack_transposed(const T* const* rows, const T* const* next, int width, float* packed,
                            int step) {
  constexpr int kElements = kLanes * kPerSlot<T>;
  Vec tile[kLanes];
  int d = 0;
  for (; d + kElements <= width; d += kElements) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      tile[i] = load_slots(rows[i] + d);
      __builtin_prefetch(next[i] + d);
    }
    transpose(tile);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(packed + (d / kPerSlot<T> + i) * step, tile[i]);
  }
  if (d == width) return;
  for (int i = 0; i < kLanes; ++i) tile[i] = load_slots_first(rows[i] + d, width - d);
  transpose(tile);
  for (int i = 0; i < slots_for<T>(width - d); ++i) {
    store(packed + (d / kPerSlot<T> + i) * step, tile[i]);
  }
}

/// Keys begin..begin+n_keys in panels of kPanel keys, [panel][depth][kPanel]; zeros past the last.
template <typename T>
inline void pack_keys(const Rows<const T>& k, sdpa_i64 begin, int n_keys, int head_dim,
                      float* packed) {
  const int panel_slots = slots_for<T>(head_dim) * kPanel;
  const T* rows[2][kLanes];
  const auto find_rows = [&](int j, const T** found) {
    for (int i = 0; i < kLanes; ++i) found[i] = j + i < n_keys ? k[begin + j + i] : zero_row<T>();
  };
  find_rows(0, rows[0]);
  for (int j = 0, now = 0; j < n_keys; j += kLanes, now ^= 1) {
    find_rows(j + kLanes, rows[now ^ 1]);
    float* columns = packed + j / kPanel * panel_slots + j % kPanel;
    pack_transposed(rows[now], rows[now ^ 1], head_dim, columns, kPanel);
  }
}

/// kLanes columns of a row of values from column `d` on, 0 past the row's `width`.
template <typename T>
inline Vec load_columns(const T* row, int d, int width) {
  return d + kLanes <= width ? load(row + d) : load_first(row + d, width - d);
}

/// Values of the same keys in panels of kPanel columns, [panel][depth][kPanel], where depth runs
/// over keys (pairs of keys: an odd last one is paired with zeros).
template <typename T>
inline void pack_values(const Rows<const T>& v, sdpa_i64 begin, int n_keys, int value_dim,
                        int panel_depth, float* packed) {
  constexpr int kAhead = 8;  // rows
  for (int j = 0; j < n_keys; j += kPerSlot<T>) {
    const T* row = v[begin + j];
    const T* odd = j + 1 < n_keys ? v[begin + j + 1] : zero_row<T>();
    float* slot = packed + j / kPerSlot<T> * kPanel;
    for (int d = 0; d < value_dim; d += kLanes) {
      Vec columns = load_columns(row, d, value_dim);
      __builtin_prefetch(row + kAhead * v.stride + d);
      if constexpr (kPairs<T>) columns = join_pairs(columns, load_columns(odd, d, value_dim));
      store(slot + d / kPanel * panel_depth * kPanel + d % kPanel, columns);
    }
  }
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
