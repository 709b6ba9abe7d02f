// Rows of K and V as the kernels go through them: pointers to each of a span's or a block's rows,
// found once for all that is done with them. So pages cost no look at a table in a loop, whatever
// their length, and dense rows no more than a store and a load a row.
#pragma once

#include "cpu/fast/launch_view.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

using FourPointers = std::uint64_t __attribute__((vector_size(32)));
static_assert(sizeof(FourPointers) == 4 * sizeof(const void*));

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
  /// Four at a time: where keys are few elements a pointer by itself costs a tenth of their
  /// product.
  void fill(const T* row, sdpa_i64 n, const T** rows) const {
    const auto address = reinterpret_cast<std::uint64_t>(row);
    const auto step = static_cast<std::uint64_t>(place_.row_stride) * sizeof(T);
    FourPointers four = {address, address + step, address + 2 * step, address + 3 * step};
    sdpa_i64 i = 0;
#pragma GCC unroll 4
    for (; i + 4 <= n; i += 4, four += 4 * step) __builtin_memcpy(rows + i, &four, sizeof(four));
    for (; i < n; ++i) rows[i] = row + i * place_.row_stride;
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
