// Brings the next block of keys and values near while the present one is multiplied.
#pragma once

#include "cpu/fast/near_rows.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// Rows of K, then of V, prefetched a few lines at a time, spread evenly over steps of products.
class SpreadRows {
 public:
  /// Starts anew: all lines of both over the next `n_steps` steps.
  void aim(const MemoryRows& k, const MemoryRows& v, sdpa_i64 n_steps) {
    rows_ = NearRows(k);
    next_ = NearRows(v);
    credit_ = 0;
    const sdpa_i64 lines = rows_.lines_left() + next_.lines_left();
    rate_ = n_steps == 0 ? 0 : static_cast<int>((lines * kOneLine + n_steps - 1) / n_steps);
  }

  /// What `n` steps have earned. Inlined: a call would cost the caller the sums in its registers.
  [[gnu::always_inline]] void step(int n) {
    if (rows_.lines_left() == 0) return;
    credit_ += n * rate_;
    for (; credit_ >= kOneLine && rows_.lines_left() > 0; credit_ -= kOneLine) bring_line();
  }

 private:
  static constexpr int kOneLine = 1024;

  [[gnu::always_inline]] void bring_line() {
    rows_.bring_line<Prefetch>();
    if (rows_.lines_left() > 0) return;
    rows_ = next_;
    next_ = NearRows();
  }

  NearRows rows_;
  NearRows next_;
  int credit_ = 0;
  int rate_ = 0;
};

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
