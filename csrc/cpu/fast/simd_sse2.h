// simd.h for what every x86-64 processor has. There is no fused multiply-add: fma rounds twice.
#pragma once

#include <emmintrin.h>

#include "cpu/fast/elements.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

using Vec = __m128;
inline constexpr int kLanes = 4;
inline constexpr int kRowTile = 5;  // 10 sums, 2 columns, a factor and a product, of 16 registers
inline constexpr int kMostSums = 2 * kRowTile;

inline Vec splat(float x) { return _mm_set1_ps(x); }

inline Vec load(const float* p) { return _mm_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm_storeu_ps(p, v); }

inline Vec widen(const F16*, __m128i words) {
  // The exponent and the fraction, shifted into place, are off by 2^112; the product is exact for
  // subnormals too. What was infinite or NaN becomes so again.
  const __m128i magnitude = _mm_slli_epi32(_mm_and_si128(words, _mm_set1_epi32(0x7fff)), 13);
  const __m128i sign = _mm_slli_epi32(_mm_and_si128(words, _mm_set1_epi32(0x8000)), 16);
  const Vec finite = _mm_castsi128_ps(magnitude) * _mm_set1_ps(0x1p112f);
  const __m128i is_special = _mm_cmpgt_epi32(magnitude, _mm_set1_epi32((0x7c00 << 13) - 1));
  const __m128i special = _mm_and_si128(is_special, _mm_set1_epi32(0x7f800000));
  return _mm_castsi128_ps(_mm_or_si128(_mm_or_si128(_mm_castps_si128(finite), special), sign));
}
inline Vec widen(const BF16*, __m128i words) { return _mm_castsi128_ps(_mm_slli_epi32(words, 16)); }

/// Halves in the low 16 bits of each lane.
inline __m128i narrow(const F16*, Vec v) {
  const __m128i bits = _mm_castps_si128(v);
  const __m128i sign = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(0x8000));
  const __m128i magnitude = _mm_and_si128(bits, _mm_set1_epi32(0x7fffffff));
  // Normal halves: round in place of the fraction's end, then rebase the exponent.
  const __m128i odd = _mm_and_si128(_mm_srli_epi32(magnitude, 13), _mm_set1_epi32(1));
  const __m128i rounded = _mm_add_epi32(_mm_add_epi32(magnitude, _mm_set1_epi32(0xfff)), odd);
  const __m128i normal = _mm_srli_epi32(_mm_sub_epi32(rounded, _mm_set1_epi32(112 << 23)), 13);
  // Subnormal halves: adding 1/2 leaves units of 2^-24 in the fraction, rounded by the addition.
  const Vec half = _mm_set1_ps(0.5f);
  const __m128i subnormal =
      _mm_sub_epi32(_mm_castps_si128(_mm_castsi128_ps(magnitude) + half), _mm_castps_si128(half));
  const __m128i is_small = _mm_cmpgt_epi32(_mm_set1_epi32(113 << 23), magnitude);
  __m128i result =
      _mm_or_si128(_mm_and_si128(is_small, subnormal), _mm_andnot_si128(is_small, normal));
  const __m128i is_large = _mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x477fefff));
  result = _mm_or_si128(_mm_and_si128(is_large, _mm_set1_epi32(0x7c00)),
                        _mm_andnot_si128(is_large, result));
  const __m128i is_nan = _mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x7f800000));
  result =
      _mm_or_si128(_mm_and_si128(is_nan, _mm_set1_epi32(0x7e00)), _mm_andnot_si128(is_nan, result));
  return _mm_or_si128(result, sign);
}
inline __m128i narrow(const BF16*, Vec v) {
  const __m128i bits = _mm_castps_si128(v);
  const __m128i upper = _mm_srli_epi32(bits, 16);
  const __m128i tie_to_even = _mm_and_si128(upper, _mm_set1_epi32(1));
  const __m128i bias = _mm_add_epi32(_mm_set1_epi32(0x7fff), tie_to_even);
  const __m128i rounded = _mm_srli_epi32(_mm_add_epi32(bits, bias), 16);
  const __m128i quiet = _mm_or_si128(upper, _mm_set1_epi32(0x40));
  const __m128i is_nan = _mm_castps_si128(_mm_cmpunord_ps(v, v));
  return _mm_or_si128(_mm_and_si128(is_nan, quiet), _mm_andnot_si128(is_nan, rounded));
}

template <typename T>
inline Vec load(const T* p) {
  const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return widen(p, _mm_unpacklo_epi16(bits, _mm_setzero_si128()));
}
template <typename T>
inline void store(T* p, Vec v) {
  const __m128i words = narrow(p, v);
  // packs saturates signed numbers: sign-extend the 16 bits first.
  const __m128i extended = _mm_srai_epi32(_mm_slli_epi32(words, 16), 16);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi32(extended, extended));
}
template <typename T>
inline Vec load_first(const T* p, int n) {
  T lanes[kLanes] = {};
  copy_elements(p, lanes, n);
  return load(lanes);
}
template <typename T>
inline void store_first(T* p, Vec v, int n) {
  T lanes[kLanes];
  store(lanes, v);
  copy_elements(lanes, p, n);
}

inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec max(Vec a, Vec b) { return _mm_max_ps(a, b); }
inline Vec round_to_integer(Vec v) { return _mm_cvtepi32_ps(_mm_cvtps_epi32(v)); }
inline Vec times_power_of_two(Vec v, Vec n) {
  // The exponent field of 2^n; 0, hence a factor of 0, for n = -127.
  const __m128i exponent = _mm_add_epi32(_mm_cvtps_epi32(n), _mm_set1_epi32(127));
  return v * _mm_castsi128_ps(_mm_slli_epi32(exponent, 23));
}
inline Vec zero_unless_finite(Vec x, Vec v) {
  const Vec difference = x - x;
  return _mm_and_ps(v, _mm_cmpord_ps(difference, difference));
}
inline Vec keep_infinite(Vec x, Vec v) {
  const Vec is_hidden = _mm_cmpeq_ps(x, splat(-__builtin_inff()));
  return _mm_or_ps(_mm_and_ps(is_hidden, x), _mm_andnot_ps(is_hidden, v));
}

inline float reduce_add(Vec v) {
  const Vec half = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}
inline float reduce_max(Vec v) {
  const Vec half = _mm_max_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}

inline void interleave(Vec a, Vec b, Vec& low, Vec& high) {
  low = _mm_unpacklo_ps(a, b);
  high = _mm_unpackhi_ps(a, b);
}

inline Vec pair_sums(Vec a, Vec b) {
  return _mm_shuffle_ps(a, b, 0x88) + _mm_shuffle_ps(a, b, 0xdd);
}

Vec block_pair_sums(Vec a, Vec b);  // a vector is one block
template <int kN, typename T>
Vec load_repeated(const T* p);
template <int kN, typename T>
Vec load_repeated_first(const T* p, int n);

inline Vec load_four(const float* p) { return load(p); }
template <int kLane>
inline Vec splat_lane(Vec four) {
  return _mm_shuffle_ps(four, four, kLane * 0x55);
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
