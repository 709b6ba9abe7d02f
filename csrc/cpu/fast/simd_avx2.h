// simd.h for AVX2 with FMA and F16C.
#pragma once

#include <immintrin.h>

#include "cpu/fast/elements.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

using Vec = __m256;
inline constexpr int kLanes = 8;
inline constexpr int kRowTile = 6;  // 12 sums, 2 columns and a factor, of 16 registers
inline constexpr int kMostSums = 2 * kRowTile;

inline __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Vec splat(float x) { return _mm256_set1_ps(x); }

inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec load_first(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline void store_first(float* p, Vec v, int n) { _mm256_maskstore_ps(p, first_lanes(n), v); }

inline Vec widen(const F16*, __m128i bits) { return _mm256_cvtph_ps(bits); }
inline Vec widen(const BF16*, __m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline __m128i narrow(const F16*, Vec v) {
  return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline __m128i narrow(const BF16*, Vec v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i upper = _mm256_srli_epi32(bits, 16);
  const __m256i tie_to_even = _mm256_and_si256(upper, _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), tie_to_even);
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
  const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i words = _mm256_blendv_epi8(rounded, quiet, is_nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

template <typename T>
inline Vec load(const T* p) {
  return widen(p, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
template <typename T>
inline Vec load_first(const T* p, int n) {
  T lanes[kLanes] = {};
  copy_elements(p, lanes, n);
  return load(lanes);
}
template <typename T>
inline void store(T* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(p, v));
}
template <typename T>
inline void store_first(T* p, Vec v, int n) {
  T lanes[kLanes];
  store(lanes, v);
  copy_elements(lanes, p, n);
}

inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec round_to_integer(Vec v) {
  return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec times_power_of_two(Vec v, Vec n) {
  // The exponent field of 2^n; 0, hence a factor of 0, for n = -127.
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return v * _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
inline Vec zero_unless_finite(Vec x, Vec v) {
  const Vec difference = x - x;
  return _mm256_and_ps(v, _mm256_cmp_ps(difference, difference, _CMP_ORD_Q));
}
inline Vec keep_infinite(Vec x, Vec v) {
  const Vec hidden = splat(-__builtin_inff());
  return _mm256_blendv_ps(v, hidden, _mm256_cmp_ps(x, hidden, _CMP_EQ_OQ));
}

inline float reduce_add(Vec v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}
inline float reduce_max(Vec v) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}

inline void interleave(Vec a, Vec b, Vec& low, Vec& high) {
  const Vec even = _mm256_unpacklo_ps(a, b);
  const Vec odd = _mm256_unpackhi_ps(a, b);
  low = _mm256_permute2f128_ps(even, odd, 0x20);
  high = _mm256_permute2f128_ps(even, odd, 0x31);
}

inline Vec pair_sums(Vec a, Vec b) {
  return _mm256_shuffle_ps(a, b, 0x88) + _mm256_shuffle_ps(a, b, 0xdd);
}
inline Vec block_pair_sums(Vec a, Vec b) {
  return _mm256_permute2f128_ps(a, b, 0x20) + _mm256_permute2f128_ps(a, b, 0x31);
}

template <int kN>
inline Vec load_repeated(const float* p) {
  static_assert(kN == 4);
  return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
}
template <int kN, typename T>
inline Vec load_repeated(const T* p) {
  static_assert(kN == 4);
  const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return widen(p, _mm_broadcastq_epi64(bits));
}
template <int kN, typename T>
inline Vec load_repeated_first(const T* p, int n) {
  T part[kN] = {};
  copy_elements(p, part, n);
  return load_repeated<kN>(part);
}

inline Vec load_four(const float* p) { return load_repeated<4>(p); }
template <int kLane>
inline Vec splat_lane(Vec four) {
  return _mm256_permute_ps(four, kLane * 0x55);
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
