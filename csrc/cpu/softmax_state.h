// The state of a softmax over some keys, (maximum, sum, numerators), and how two states merge.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

namespace metal_sdpa::cpu {

/// Adds to a sum that carries its rounding error along (W. Kahan, "Further remarks on reducing
/// truncation errors", 1965), so that the error does not grow with the number of terms.
inline void add_compensated(float& sum, float& compensation, float value) noexcept {
  const float corrected = value - compensation;
  const float next = sum + corrected;
  // An infinite sum has no error to carry: inf - inf would make it NaN.
  compensation = std::isfinite(next) ? (next - sum) - corrected : 0;
  sum = next;
}

/// What to subtract from scores whose maximum is `maximum`: itself, but never -inf, so that a
/// row of -inf scores gives weights of 0 instead of NaN.
inline float softmax_reference(float maximum) noexcept {
  return maximum == -std::numeric_limits<float>::infinity() ? 0.0f : maximum;
}

/// State of some keys for one query row, in the unit of the scores. Numerators are not
/// initialised: `reset` says how many are in use.
template <int kMaxWidth>
struct SoftmaxState {
  float maximum;
  float sum;
  float sum_compensation;
  float numerators[kMaxWidth];
  float compensations[kMaxWidth];

  void reset(int width) noexcept {
    maximum = -std::numeric_limits<float>::infinity();
    sum = 0;
    sum_compensation = 0;
    std::fill(numerators, numerators + width, 0.0f);
    std::fill(compensations, compensations + width, 0.0f);
  }

  /// Brings everything to the unit of another maximum.
  void scale(float factor, int width) noexcept {
    sum *= factor;
    sum_compensation *= factor;
    for (int d = 0; d < width; ++d) numerators[d] *= factor;
    for (int d = 0; d < width; ++d) compensations[d] *= factor;
  }

  /// Adds `weight_sum` and `values`, times `factor`, which are in the unit of `maximum`.
  void add(float weight_sum, const float* values, float factor, int width) noexcept {
    add_compensated(sum, sum_compensation, weight_sum * factor);
    for (int d = 0; d < width; ++d) {
      add_compensated(numerators[d], compensations[d], values[d] * factor);
    }
  }

  /// Merges the state of later keys into this one. Exp is std::exp or std::exp2, by the unit.
  template <typename Exp>
  void merge(float added_maximum, float added_sum, const float* added_numerators, int width,
             Exp exp) noexcept {
    const float merged = added_maximum > maximum ? added_maximum : maximum;
    const float reference = softmax_reference(merged);
    scale(exp(maximum - reference), width);
    add(added_sum, added_numerators, exp(added_maximum - reference), width);
    maximum = merged;
  }
};

}  // namespace metal_sdpa::cpu
