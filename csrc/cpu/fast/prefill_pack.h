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

/// kLanes slots of a row from element `d` on, 0 past the row's `width`.
template <typename T>
inline Vec load_slots(const T* row, int d, int width) {
  const int left = width - d;
  if constexpr (kPairs<T>) {
    return left >= 2 * kLanes ? load_pairs(row + d) : load_pairs_first(row + d, left);
  } else {
    return left >= kLanes ? load(row + d) : load_first(row + d, left);
  }
}

/// packed[slot * step + r] = slots of rows[r]; a null row is zeros. Writes `n_rows` columns.
template <typename T>
inline void pack_transposed(const T* const* rows, int n_rows, int width, float* packed, int step) {
  constexpr int kElements = kLanes * kPerSlot<T>;
  for (int d = 0; d < width; d += kElements) {
    const int n_slots = smaller(kLanes, slots_for<T>(width - d));
    float* slots = packed + d / kPerSlot<T> * step;
    for (int r = 0; r < n_rows; r += kLanes) {
      const int columns = smaller(kLanes, n_rows - r);
      Vec tile[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const bool is_zero = i >= columns || rows[r + i] == nullptr;
        tile[i] = is_zero ? splat(0.0f) : load_slots(rows[r + i], d, width);
      }
      transpose(tile);
      if (columns == kLanes) {
        for (int i = 0; i < n_slots; ++i) store(slots + i * step + r, tile[i]);
      } else {
        for (int i = 0; i < n_slots; ++i) store_first(slots + i * step + r, tile[i], columns);
      }
    }
  }
}

/// Keys begin..begin+n_keys in panels of kPanel keys, [panel][depth][kPanel]; zeros past the last.
template <typename T>
inline void pack_keys(const Rows<const T>& k, sdpa_i64 begin, int n_keys, int head_dim,
                      float* packed) {
  const int panel_slots = slots_for<T>(head_dim) * kPanel;
  for (int j = 0; j < n_keys; j += kPanel) {
    const T* rows[kPanel];
    for (int i = 0; i < kPanel; ++i) rows[i] = j + i < n_keys ? k[begin + j + i] : nullptr;
    pack_transposed(rows, kPanel, head_dim, packed + j / kPanel * panel_slots, kPanel);
  }
}

/// kLanes columns of a row of values from column `d` on, 0 past the row's `width`.
template <typename T>
inline Vec load_columns(const T* row, int d, int width) {
  const int left = width - d;
  if (left >= kLanes) return load(row + d);
  return left > 0 ? load_first(row + d, left) : splat(0.0f);
}

/// Values of the same keys in panels of kPanel columns, [panel][depth][kPanel], where depth runs
/// over keys (pairs of keys: an odd last one is paired with zeros).
template <typename T>
inline void pack_values(const Rows<const T>& v, sdpa_i64 begin, int n_keys, int value_dim,
                        int panel_depth, float* packed) {
  for (int d = 0; d < value_dim; d += kPanel) {
    float* slot = packed + static_cast<sdpa_i64>(d) * panel_depth;
    for (int j = 0; j < n_keys; j += kPerSlot<T>) {
      const T* row = v[begin + j];
      Vec columns[2] = {load_columns(row, d, value_dim), load_columns(row, d + kLanes, value_dim)};
      if constexpr (kPairs<T>) {
        const bool has_odd = j + 1 < n_keys;
        const T* odd = has_odd ? v[begin + j + 1] : row;
        const int odd_width = has_odd ? value_dim : 0;
        columns[0] = join_pairs(columns[0], load_columns(odd, d, odd_width));
        columns[1] = join_pairs(columns[1], load_columns(odd, d + kLanes, odd_width));
      }
      store(slot, columns[0]);
      store(slot + kLanes, columns[1]);
      slot += kPanel;
    }
  }
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
