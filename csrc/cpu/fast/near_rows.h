// Brings rows of keys and values near before they are multiplied, while others are.
#pragma once

#include "cpu/fast/key_rows.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// Bytes of a cache line, or a divisor of them.
inline constexpr int kLineBytes = 64;

// How a line comes near. Always inlined: g++ 12 takes a function that only prefetches for one
// without effect, and drops its calls.

/// Into the L2 cache, without waiting; but one that finds the cache's queue full is dropped, so
/// that they bring some 20 GB/s a thread where loads bring 30 (docs/performance/sdpa_decode.md).
struct Prefetch {
  [[gnu::always_inline]] static void bring(const char* line) { __builtin_prefetch(line, 0, 2); }
};

/// Into the L1 cache by a load, which the hardware's own prefetchers follow at the full rate of
/// memory; but too many that wait hold up what comes after them.
struct Load {
  [[gnu::always_inline]] static void bring(const char* line) {
    static_cast<void>(*static_cast<const volatile char*>(line));
  }
};

/// n_rows rows of row_bytes bytes each, which `rows` points to. One more pointer follows the last.
struct MemoryRows {
  const char* const* rows = nullptr;
  int row_bytes = 0;
  int n_rows = 0;
  bool is_contiguous = false;  ///< no gap between any two rows

  int lines() const { return n_rows * ((row_bytes + kLineBytes - 1) / kLineBytes); }

  MemoryRows slice(int begin, int end) const {
    return {rows + begin, row_bytes, end - begin, is_contiguous};
  }

  /// Parts begin..end of `parts`.
  MemoryRows part(int begin, int end, int parts) const {
    const bool is_all = begin == 0 && end == parts;
    if (n_rows == 0 || is_all) return *this;  // often, and divisions are slow
    return slice(n_rows * begin / parts, n_rows * end / parts);
  }

  /// Rows without a gap between them are one long row.
  MemoryRows joined() const {
    return is_contiguous && n_rows > 0 ? MemoryRows{rows, row_bytes * n_rows, 1, true} : *this;
  }
};

/// `n_rows` rows of `width` elements.
template <typename T>
inline MemoryRows memory_rows(const T* const* rows, sdpa_i64 n_rows, sdpa_u32 width,
                              bool is_contiguous) {
  return {reinterpret_cast<const char* const*>(rows), static_cast<int>(width * sizeof(T)),
          static_cast<int>(n_rows), is_contiguous};
}

/// A walk over the lines of some rows, in the order of addresses: memory gives its full rate to no
/// other. It reads only within the rows and never changes a result. Small, so that an inner loop
/// can keep a copy of it in registers.
class NearRows {
 public:
  NearRows() = default;
  explicit NearRows(const MemoryRows& rows) {
    const MemoryRows joined = rows.joined();
    left_ = joined.lines();
    if (left_ == 0) return;
    rows_ = joined.rows;
    row_bytes_ = joined.row_bytes;
    line_ = *rows_;
    row_end_ = line_ + row_bytes_;
  }

  int lines_left() const { return left_; }

  template <typename How>
  [[gnu::always_inline]] void bring_line() {
    How::bring(line_);
    --left_;
    line_ += kLineBytes;
    if (line_ < row_end_) return;
    line_ = *++rows_;
    row_end_ = line_ + row_bytes_;
  }

  /// The next kLines lines, or none where fewer are left.
  template <typename How, int kLines>
  [[gnu::always_inline]] void bring_lines() {
    if (left_ < kLines) return;
#pragma GCC unroll 16
    for (int i = 0; i < kLines; ++i) bring_line<How>();
  }

  template <typename How>
  [[gnu::always_inline]] void bring_all() {
    while (left_ > 0) bring_line<How>();
  }

 private:
  const char* line_ = nullptr;
  const char* row_end_ = nullptr;
  const char* const* rows_ = nullptr;
  int row_bytes_ = 0;
  int left_ = 0;
};

/// Lines of kBytes bytes, at least one.
template <int kBytes>
inline constexpr int kLinesOf = (kBytes + kLineBytes - 1) / kLineBytes;

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
