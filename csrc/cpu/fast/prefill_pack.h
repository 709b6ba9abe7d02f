// Operands of the tile products, packed so that the inner loops read memory in order. A slot is 4
// bytes: one f32, or two bf16 where products are of pairs. `depth` counts slots along the sum.
#pragma once

#include "cpu/fast/amx.h"
#include "cpu/fast/key_rows.h"
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

/// Whether products of T are made in AMX's registers, whole ones.
template <typename T>
inline constexpr bool kUsesAmx = kPairs<T> && kHasAmx;

/// Slots that products take at once: operands end with zeros up to a multiple.
template <typename T>
inline constexpr int kDepthUnit = kUsesAmx<T> ? kAmxRows : 1;

template <typename T>
inline int whole_depth(int slots) {
  return (slots + kDepthUnit<T> - 1) / kDepthUnit<T> * kDepthUnit<T>;
}

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

/// A row as it lies, and zeros up to `depth` slots.
template <typename T>
inline void pack_row(const T* row, int width, int depth, float* packed) {
  constexpr int kElements = kLanes * kPerSlot<T>;
  for (int d = 0; d < depth * kPerSlot<T>; d += kElements) {
    const int n = larger(smaller(width - d, kElements), 0);
    store(packed + d / kPerSlot<T>, load_slots_first(row + d, n));
  }
}

/// Zeros to slots begin..end of panels that are `panel_slots` apart.
inline void clear_slots(float* panels, int n_panels, int panel_slots, int begin, int end) {
  for (int panel = 0; panel < n_panels; ++panel) {
    for (int slot = begin * kPanel; slot < end * kPanel; slot += kLanes) {
      store(panels + panel * panel_slots + slot, splat(0.0f));
    }
  }
}

/// The n_keys keys of rows k in panels of kPanel keys, [panel][depth][kPanel]; zeros past the last.
/// Of the first `skip` keys only zeros are packed.
template <typename T>
inline void pack_keys(const T* const* k, int skip, int n_keys, int head_dim, float* packed) {
  const int depth = whole_depth<T>(slots_for<T>(head_dim));
  const int panel_slots = depth * kPanel;
  const T* rows[2][kLanes];
  const auto find_rows = [&](int j, const T** found) {
    for (int i = 0; i < kLanes; ++i) {
      found[i] = j + i >= skip && j + i < n_keys ? k[j + i] : zero_row<T>();
    }
  };
  find_rows(0, rows[0]);
  for (int j = 0, now = 0; j < n_keys; j += kLanes, now ^= 1) {
    find_rows(j + kLanes, rows[now ^ 1]);
    float* columns = packed + j / kPanel * panel_slots + j % kPanel;
    pack_transposed(rows[now], rows[now ^ 1], head_dim, columns, kPanel);
  }
  clear_slots(packed, (n_keys + kPanel - 1) / kPanel, panel_slots, slots_for<T>(head_dim), depth);
}

/// kLanes columns of a row of values from column `d` on, 0 past the row's `width`.
template <typename T>
inline Vec load_columns(const T* row, int d, int width) {
  return d + kLanes <= width ? load(row + d) : load_first(row + d, width - d);
}

/// Rows that are prefetched while one is packed.
inline constexpr int kRowsAhead = 8;

/// Columns of one row of values to the same slot of every panel.
template <typename T>
inline void pack_value_row(const T* row, const T* near, int value_dim, int panel_slots,
                           float* slot) {
  for (int d = 0; d < value_dim; d += kLanes) {
    __builtin_prefetch(near + d);
    store(slot + d / kPanel * panel_slots + d % kPanel, load_columns(row, d, value_dim));
  }
}

/// The same of two rows of bf16 as pairs.
inline void pack_value_pair(const BF16* even, const BF16* odd, const BF16* near_even,
                            const BF16* near_odd, int value_dim, int panel_slots, float* slot) {
  const auto store_columns = [&](Vec a, Vec b) {
    Vec low, high;
    zip_pairs(a, b, low, high);
    store(slot, low);
    store(slot + kLanes, high);
    slot += panel_slots;
  };
  int d = 0;
  for (; d + kPanel <= value_dim; d += kPanel) {
    __builtin_prefetch(near_even + d);
    __builtin_prefetch(near_odd + d);
    store_columns(load_pairs(even + d), load_pairs(odd + d));
  }
  if (d == value_dim) return;
  store_columns(load_pairs_first(even + d, value_dim - d),
                load_pairs_first(odd + d, value_dim - d));
}

/// Values of the same keys in panels of kPanel columns, [panel][depth][kPanel], where depth runs
/// over keys (pairs of keys: an odd last one is paired with zeros). The first `skip` are zeros.
/// Rows up to v[n_rows] come near, n_keys at least.
template <typename T>
inline void pack_values(const T* const* v, int skip, int n_keys, int n_rows, int value_dim,
                        int panel_depth, float* packed) {
  const int panel_slots = panel_depth * kPanel;
  const int first = skip / kPerSlot<T>;
  clear_slots(packed, (value_dim + kPanel - 1) / kPanel, panel_slots, 0, first);
  for (int j = first * kPerSlot<T>; j < n_keys; j += kPerSlot<T>) {
    const T* row = j < skip ? zero_row<T>() : v[j];
    const T* near = v[smaller(j + kRowsAhead, n_rows)];
    float* slot = packed + j / kPerSlot<T> * kPanel;
    if constexpr (kPairs<T>) {
      const T* odd = j + 1 < n_keys ? v[j + 1] : zero_row<T>();
      const T* near_odd = v[smaller(j + kRowsAhead + 1, n_rows)];
      pack_value_pair(row, odd, near, near_odd, value_dim, panel_slots, slot);
    } else {
      pack_value_row(row, near, value_dim, panel_slots, slot);
    }
  }
  const int depth = slots_for<T>(n_keys);
  clear_slots(packed, (value_dim + kPanel - 1) / kPanel, panel_slots, depth, whole_depth<T>(depth));
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
