// The state of a softmax over some keys: a reference, the sum of weights and the weighted values
// (numerators), and how states come to one reference and are added.
//
// Scores and references are in natural units: a finite score times log2 e can be past the largest
// float, so log2 e multiplies differences only. The weight of a score x is
//   exp2((x - reference) log2 e)
// with a reference at or above the largest score, but for a rounding, and of one of two kinds:
//   whole    |reference| <= kWholeReference: n ln 2, rounded, for a whole number n. Going from one
//            to another multiplies by a power of two, which is exact: no rounding gathers however
//            often the maximum moves.
//   maximum  beyond, where n could not be had back from n ln 2: the largest score itself. Going on
//            multiplies by exp2((reference - next) log2 e), which rounds.
//
// Error of a weight, relative, in units of u = 2^-24: x - reference, its product with log2 e and
// log2 e as a float round by 2.3 |x - reference| u together, and n ln 2 is |reference| u off where
// weights of another reference are to be compared. Both are within the 6 |scale| |q| |k| u of the
// bound, since |x| is at most |scale| |q| |k|; beside them stand |x| u for the scale and the
// roundings of q k (attention_tile.h). Beyond kWholeReference a state is rounded each time that its
// maximum moves, by about 3 u; but it moves by at least 1/8 (the distance of floats there), so that
// what was rounded k times is exp(-k / 8) of the state: 24 u, where the bound has 6 * 2^20 u.
#ifndef METAL_SDPA_SOFTMAX_STATE_H
#define METAL_SDPA_SOFTMAX_STATE_H

#include <metal_stdlib>

namespace metal_sdpa {

/// log2(e): natural units to log2 units.
constant constexpr float kLog2E = 1.44269504088896340736f;
/// ln(2): log2 units to natural units.
constant constexpr float kLn2 = 0.69314718055994530942f;
/// Up to here n comes back from n ln 2: the roundings of both products are under 1/8 together.
constant constexpr float kWholeReference = 1048576.0f;

/// Whether a reference is n ln 2.
inline bool is_whole(float reference) { return metal::fabs(reference) <= kWholeReference; }

/// n of a whole reference.
inline float whole_exponent(float reference) { return metal::rint(reference * kLog2E); }

/// The reference that a largest score asks for.
inline float reference_above(float maximum) {
  const float whole = metal::ceil(maximum * kLog2E) * kLn2;
  return is_whole(maximum) ? whole : maximum;
}

/// What to subtract from scores: the reference, but never -inf, so that a row with no key, or of
/// -inf scores only, has weights of 0 instead of NaN.
inline float subtrahend(float reference) { return reference == -INFINITY ? 0.0f : reference; }

/// Weight of a score under what is to be subtracted from it.
inline float weight_of(float score, float from) { return metal::exp2((score - from) * kLog2E); }

/// log2 of the factor that brings weights from one reference to another at or above it.
inline float rescale_exponent(float from, float to) {
  const bool whole = is_whole(from) && is_whole(to);
  return whole ? whole_exponent(from) - whole_exponent(to) : (from - to) * kLog2E;
}

/// The factor. Under the smallest normal float it is 0, and so is that of a state without a
/// reference.
inline float rescale_factor(float from, float to) {
  const bool whole = is_whole(from) && is_whole(to);
  const float exponent = rescale_exponent(from, to);
  if (!(exponent >= -126.0f)) return 0.0f;
  return whole ? as_type<float>((int(exponent) + 127) << 23) : metal::exp2(exponent);
}

/// Adds to a sum that carries its rounding error along (W. Kahan, "Further remarks on reducing
/// truncation errors", 1965), so that its error is 2 u of the sum of |value| whatever their number.
/// The error of the addition is exact whichever term is larger (D. Knuth's TwoSum), so `sum` is
/// the float nearest to sum - compensation, and adding 0 changes neither: a tile that shows a row
/// nothing leaves its state as it is, bit by bit. What is not finite ends as NaN.
inline void compensated_add(thread float& sum, thread float& compensation, float value) {
  const float corrected = value - compensation;
  const float next = sum + corrected;
  const float added = next - sum;
  compensation = ((next - added) - sum) + (added - corrected);
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

/// The same where terms may be infinite: an infinite sum has no error to carry.
inline void compensated_add_special(thread float& sum, thread float& compensation, float value) {
  compensated_add(sum, compensation, value);
  if (!metal::isfinite(sum)) compensation = 0.0f;
}

/// A value times the weight of a key that is seen. An infinite one stays infinite where the weight
/// is too small for a float: no such weight is truly 0.
inline float weighted(float value, float weight) {
  return metal::isfinite(value) ? value * weight : value;
}

/// What to multiply numerators by for the result: 0 for a row without any weight.
inline float inverse_of_sum(float sum) { return sum == 0.0f ? 0.0f : 1.0f / sum; }

/// An element of the result. Adding 0 makes -0 into 0: which of the two a numerator of 0 is hangs
/// on how many tiles of hidden keys a row has gone through.
inline float normalised(float numerator, float inverse) {
  return metal::fma(numerator, inverse, 0.0f);
}

/// Natural log of the sum of exponentials; -inf for a row without any weight.
inline float log_sum_exp(float reference, float sum) {
  if (sum == 0.0f) return -INFINITY;
  const float exponent = metal::log2(sum);
  if (is_whole(reference)) return (whole_exponent(reference) + exponent) * kLn2;
  return metal::fma(exponent, kLn2, reference);
}

}  // namespace metal_sdpa

#endif  // METAL_SDPA_SOFTMAX_STATE_H
