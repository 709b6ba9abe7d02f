// Brings the next block of keys and values near while the present one is multiplied.
#pragma once

#include "cpu/fast/launch_view.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// Rows of memory, prefetched a few lines at a time. Only a hint: it never changes a result.
class NearRows {
 public:
  /// Lines of `n_rows` rows of `row_bytes` bytes each, from `first` on.
  struct Part {
    const char* first = nullptr;
    sdpa_i64 stride = 0;  ///< bytes
    int row_bytes = 0;
    int n_rows = 0;

    int lines() const { return n_rows * ((row_bytes + kLine - 1) / kLine); }
  };

  /// Starts anew: all lines of both parts over the next `n_steps` steps.
  void aim(const Part& k, const Part& v, sdpa_i64 n_steps) {
    parts_[0] = k;
    parts_[1] = v;
    part_ = row_ = byte_ = 0;
    credit_ = 0;
    left_ = k.lines() + v.lines();
    rate_ =
        n_steps == 0 ? 0 : static_cast<int>((sdpa_i64{left_} * kOneLine + n_steps - 1) / n_steps);
  }

  /// What `n` steps have earned. Inlined: a call would cost the caller the sums in its registers.
  [[gnu::always_inline]] void step(int n) {
    if (left_ == 0) return;
    credit_ += n * rate_;
    for (; credit_ >= kOneLine && left_ > 0; credit_ -= kOneLine) touch();
  }

 private:
  static constexpr int kLine = 64;
  static constexpr int kOneLine = 1024;

  [[gnu::always_inline]] void touch() {
    const Part& part = parts_[part_];
    __builtin_prefetch(part.first + row_ * part.stride + byte_, 0, 2);
    --left_;
    byte_ += kLine;
    if (byte_ < part.row_bytes) return;
    byte_ = 0;
    if (++row_ < part.n_rows) return;
    row_ = 0;
    part_ = 1;
  }

  Part parts_[2];
  int part_ = 0;
  int row_ = 0;
  int byte_ = 0;
  int left_ = 0;
  int credit_ = 0;
  int rate_ = 0;
};

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
