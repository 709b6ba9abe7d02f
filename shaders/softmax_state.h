// The state of a softmax over some keys: a reference, the sum of weights and the weighted values
// (numerators), and how states come to one reference and are added.
//
// Scores are in log2 units. The weight of a score s is exp2(s - reference), where the reference is
// a whole number at or above the largest score. So going from one reference to another multiplies
// by a power of two, which is exact: no rounding gathers however often the maximum moves.
#ifndef METAL_SDPA_SOFTMAX_STATE_H
#define METAL_SDPA_SOFTMAX_STATE_H

#include <metal_stdlib>

namespace metal_sdpa {

/// log2(e): natural units to log2 units.
constant constexpr float kLog2E = 1.44269504088896340736f;
/// ln(2): log2 units to natural units.
constant constexpr float kLn2 = 0.69314718055994530942f;

/// What to subtract from scores: the reference, but never -inf, so that a row with no key, or of
/// -inf scores only, has weights of 0 instead of NaN.
inline float subtrahend(float reference) { return reference == -INFINITY ? 0.0f : reference; }

/// Factor that brings weights from one reference to another at or above it. Both are whole numbers
/// or -inf. A factor under the smallest normal float is 0.
inline float rescale_factor(float from, float to) {
  const float exponent = from - subtrahend(to);
  if (!(exponent >= -126.0f)) return 0.0f;
  return as_type<float>((int(exponent) + 127) << 23);
}

/// Adds to a sum that carries its rounding error along (W. Kahan, "Further remarks on reducing
/// truncation errors", 1965), so that its error does not grow with the number of terms.
inline void compensated_add(thread float& sum, thread float& compensation, float value) {
  const float corrected = value - compensation;
  const float next = sum + corrected;
  // An infinite sum has no error to carry: inf - inf would make it NaN.
  compensation = metal::isfinite(next) ? (next - sum) - corrected : 0.0f;
  sum = next;
}

/// The same for two sums; the elements of a vector cannot be passed by reference.
inline void compensated_add(thread float2& sum, thread float2& compensation, float2 value) {
  float first = sum.x, first_compensation = compensation.x;
  float second = sum.y, second_compensation = compensation.y;
  compensated_add(first, first_compensation, value.x);
  compensated_add(second, second_compensation, value.y);
  sum = float2(first, second);
  compensation = float2(first_compensation, second_compensation);
}

/// What to multiply numerators by for the result: 0 for a row without any weight.
inline float inverse_of_sum(float sum) { return sum == 0.0f ? 0.0f : 1.0f / sum; }

/// Natural log of the sum of exponentials; -inf for a row without any weight.
inline float log_sum_exp(float reference, float sum) {
  return sum == 0.0f ? -INFINITY : (reference + metal::log2(sum)) * kLn2;
}

}  // namespace metal_sdpa

#endif  // METAL_SDPA_SOFTMAX_STATE_H
