// Rows of K and V as the kernels go through them: pointers to each of a span's or a block's rows,
// found once for all that is done with them. So pages cost no look at a table in a loop, whatever
// their length, and dense rows no more than a store and a load a row.
#pragma once

#include "cpu/fast/launch_view.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

template <typename T>
class KeyRows {
 public:
  KeyRows(const BoundMemory& memory, const KeyPlace& place)
      : data_(static_cast<const T*>(memory.data)), place_(place) {}

  /// Pointers to rows begin..begin+n, and the last one once more for whoever looks a row ahead.
  void find(sdpa_i64 begin, sdpa_i64 n, const T** rows) const {
    if (n <= 0) return;
    if (place_.page_len == 0) {
      fill(data_ + place_.first + begin * place_.row_stride, n, rows);
    } else {
      find_in_pages(begin, n, rows);
    }
    rows[n] = rows[n - 1];
  }

  /// Whether rows of `width` elements lie without a gap between any two.
  bool is_contiguous(sdpa_u32 width) const {
    return place_.page_len == 0 && place_.row_stride == sdpa_i64{width};
  }

 private:
  void fill(const T* row, sdpa_i64 n, const T** rows) const {
    for (sdpa_i64 i = 0; i < n; ++i) rows[i] = row + i * place_.row_stride;
  }

  void find_in_pages(sdpa_i64 begin, sdpa_i64 n, const T** rows) const {
    sdpa_i64 entry = begin / place_.page_len;
    sdpa_i64 row = begin - entry * place_.page_len;
    for (; n > 0; ++entry, row = 0) {
      const sdpa_i64 here = smaller(place_.page_len - row, n);
      fill(data_ + page_start(place_, entry) + row * place_.row_stride, here, rows);
      rows += here;
      n -= here;
    }
  }

  const T* data_;
  KeyPlace place_;
};

template <typename T>
inline KeyRows<T> key_rows(const NativeLaunch& launch, const SdpaSequence& sequence, sdpa_i64 b,
                           sdpa_i64 kv_h) {
  const SdpaArgs& args = args_of(launch);
  return {launch.bindings[SDPA_BUFFER_K],
          key_place(launch, args, sequence, args.k_offset, args.k_stride, b, kv_h)};
}
template <typename T>
inline KeyRows<T> value_rows(const NativeLaunch& launch, const SdpaSequence& sequence, sdpa_i64 b,
                             sdpa_i64 kv_h) {
  const SdpaArgs& args = args_of(launch);
  return {launch.bindings[SDPA_BUFFER_V],
          key_place(launch, args, sequence, args.v_offset, args.v_stride, b, kv_h)};
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
