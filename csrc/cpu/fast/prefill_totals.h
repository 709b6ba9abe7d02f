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
/// remarks on reducing truncation errors", 1965), so that any number of spans may be added. The
/// first one is kept as it is. From its reference to that of all spans it is a whole number of
/// powers of two, so that nothing is rounded however often the maximum moves. A step that leaves
/// nothing of what was there makes a new first one: differences of references far apart would not
/// hold those of near ones.
class RowTotal {
 public:
  /// Slots of memory that a row with `width` numerators, a multiple of kLanes, takes.
  static constexpr sdpa_i64 slots(int width) { return 2 * (width + kLanes) + 2 * kLanes; }

  RowTotal(float* memory, int width) : memory_(memory), width_(width) {}

  void reset() {
    for (int i = 0; i < slots(width_); i += kLanes) store(memory_ + i, splat(0.0f));
    first() = -kInfinity;
    raised() = 0;
  }

  /// Adds the state of the next span.
  void merge(const RowState& added) {
    if (added.reference == -kInfinity) {  // without any weight, unless its sum is NaN
      memory_[0] += added.sum;
      return;
    }
    if (first() == -kInfinity) first() = added.reference;
    const float above = added.reference - first();
    if (!(above < kInfinity)) first() = kInfinity;
    if (first() == kInfinity) return;  // out of range: finish_row.h attends the row anew
    float raised_to = raise(above);
    Vec keep = exp2(splat(raised() - raised_to));
    Vec factor = exp2(splat(above - raised_to));
    if (above - raised() > kMostStep) {
      first() = added.reference;
      raised_to = 0;
      keep = splat(0.0f);
      factor = splat(1.0f);
    }
    raised() = raised_to;
    float sum[kLanes] = {added.sum};
    add(0, load(sum), keep, factor);
    for (int d = 0; d < width_; d += kLanes) {
      add(kLanes + d, load(added.numerators + d), keep, factor);
    }
  }

  RowState state() const {
    const float* references = memory_ + 2 * (width_ + kLanes);
    return {references[0] + references[1], memory_[0], memory_ + kLanes};
  }

 private:
  /// A larger step leaves nothing: exp2 of it is 0.
  static constexpr float kMostStep = 127;

  /// How far the reference of the first span has to be raised for one that is `above` it, by
  /// kMostStep at most.
  float raise(float above) {
    constexpr float kToWhole = 0x1.8p23f;  // adding it rounds to a whole number
    const float step = above - raised();
    return step > 0 ? raised() + (smaller(step, kMostStep) + kToWhole - kToWhole) : raised();
  }

  // The sum in a vector of its own, the numerators, as many compensations; then the reference of
  // the first span and how far it was raised.
  float& first() { return memory_[2 * (width_ + kLanes)]; }
  float& raised() { return memory_[2 * (width_ + kLanes) + 1]; }

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
