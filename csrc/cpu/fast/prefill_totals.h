// Span states merged in span order, for rows that see more than one span.
#pragma once

#include "cpu/fast/launch_view.h"
#include "cpu/fast/simd.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// The state of one row: maximum in log2 units, sum and numerators in units of 2^maximum.
struct RowState {
  float maximum;
  float sum;
  const float* numerators;
};

/// A row's merged spans in memory: sums that carry their rounding errors along (W. Kahan, "Further
/// remarks on reducing truncation errors", 1965), so that any number of spans may be added.
class RowTotal {
 public:
  /// Slots of memory that a row with `width` numerators, a multiple of kLanes, takes.
  static constexpr sdpa_i64 slots(int width) { return 2 * (width + kLanes) + 2 * kLanes; }

  RowTotal(float* memory, int width) : memory_(memory), width_(width) {}

  void reset() {
    for (int i = 0; i < slots(width_); i += kLanes) store(memory_ + i, splat(0.0f));
    maximum() = -kInfinity;
  }

  /// Adds the state of the next span.
  void merge(const RowState& added) {
    const float merged = added.maximum > maximum() ? added.maximum : maximum();
    const float reference = merged == -kInfinity ? 0.0f : merged;
    const Vec keep = exp2(splat(maximum() - reference));
    const Vec factor = exp2(splat(added.maximum - reference));
    maximum() = merged;
    float sum[kLanes] = {added.sum};
    add(0, load(sum), keep, factor);
    for (int d = 0; d < width_; d += kLanes) {
      add(kLanes + d, load(added.numerators + d), keep, factor);
    }
  }

  RowState state() const {
    return {*(memory_ + 2 * (width_ + kLanes)), memory_[0], memory_ + kLanes};
  }

 private:
  // The sum in a vector of its own, the numerators, as many compensations, the maximum.
  float& maximum() { return memory_[2 * (width_ + kLanes)]; }

  void add(int slot, Vec value, Vec keep, Vec factor) {
    float* sum = memory_ + slot;
    float* compensation = sum + width_ + kLanes;
    const Vec kept = load(sum) * keep;
    const Vec corrected = value * factor - load(compensation) * keep;
    const Vec next = kept + corrected;
    // An infinite sum has no error to carry: inf - inf would make it NaN.
    store(compensation, zero_unless_finite(next, (next - kept) - corrected));
    store(sum, next);
  }

  float* memory_;
  int width_;
};

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
