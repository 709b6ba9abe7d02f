// Span states merged in span order, for rows that see more than one span.
#pragma once

#include "cpu/fast/launch_view.h"
#include "cpu/fast/simd.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// The state of one row: sum and numerators in units of 2^reference, which is -inf where no score
/// was seen. The reference of one span is the maximum of its scores in log2 units.
struct RowState {
  float reference;
  float sum;
  const float* numerators;
};

/// A row's merged spans in memory: sums that carry their rounding errors along (W. Kahan, "Further
/// remarks on reducing truncation errors", 1965), so that any number of spans may be added. Their
/// reference is a whole number: going to another one multiplies by a power of two, which is exact
/// however often the maximum moves. Maxima above 2^21 or below -2^21 are too coarse for that and
/// are taken as they are; there the accuracy bound, which grows with them, leaves room for
/// roundings.
class RowTotal {
 public:
  /// Slots of memory that a row with `width` numerators, a multiple of kLanes, takes.
  static constexpr sdpa_i64 slots(int width) { return 2 * (width + kLanes) + 2 * kLanes; }

  RowTotal(float* memory, int width) : memory_(memory), width_(width) {}

  void reset() {
    for (int i = 0; i < slots(width_); i += kLanes) store(memory_ + i, splat(0.0f));
    reference() = -kInfinity;
  }

  /// Adds the state of the next span.
  void merge(const RowState& added) {
    const float merged = larger(reference(), whole(added.reference));
    const float subtrahend = merged == -kInfinity ? 0.0f : merged;
    const Vec keep = exp2(splat(reference() - subtrahend));
    const Vec factor = exp2(splat(added.reference - subtrahend));
    reference() = merged;
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
  static float whole(float reference) {
    constexpr float kMost = 0x1p21f;
    constexpr float kToWhole = 0x1.8p23f;  // adding it rounds to a whole number
    const bool is_fine = reference >= -kMost && reference <= kMost;
    return is_fine ? reference + kToWhole - kToWhole : reference;
  }

  // The sum in a vector of its own, the numerators, as many compensations, the reference.
  float& reference() { return memory_[2 * (width_ + kLanes)]; }

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
