// simd.h for AVX-512 F, BW, DQ, VL, and AVX512_BF16 where it is compiled in.
#pragma once

#include <immintrin.h>

#include "cpu/fast/elements.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

using Vec = __m512;
inline constexpr int kLanes = 16;
inline constexpr int kRowTile = 12;   // half of them have 12 sums
inline constexpr int kMostSums = 14;  // and 14 of the chain before, of 32 registers

inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }

inline Vec splat(float x) { return _mm512_set1_ps(x); }

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline void store_first(float* p, Vec v, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }

inline Vec widen(const F16*, __m256i bits) { return _mm512_cvtph_ps(bits); }
inline Vec widen(const BF16*, __m256i bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline __m256i narrow(const F16*, Vec v) {
  return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline __m256i narrow(const BF16*, Vec v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i upper = _mm512_srli_epi32(bits, 16);
  const __m512i tie_to_even = _mm512_and_si512(upper, _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), tie_to_even);
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
  const __m512i quiet = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, is_nan, quiet));
}

template <typename T>
inline Vec load(const T* p) {
  return widen(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
template <typename T>
inline Vec load_first(const T* p, int n) {
  return widen(p, _mm256_maskz_loadu_epi16(first_lanes(n), p));
}
template <typename T>
inline void store(T* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(p, v));
}
template <typename T>
inline void store_first(T* p, Vec v, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(p, v));
}

inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec round_to_integer(Vec v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT); }
inline Vec times_power_of_two(Vec v, Vec n) {
  const __mmask16 is_normal = _mm512_cmp_ps_mask(n, splat(-127.0f), _CMP_NEQ_UQ);
  return _mm512_maskz_scalef_ps(is_normal, v, n);
}
inline Vec zero_unless_finite(Vec x, Vec v) {
  const Vec difference = x - x;
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(difference, difference, _CMP_ORD_Q), v);
}
inline Vec keep_infinite(Vec x, Vec v) {
  const Vec hidden = splat(-__builtin_inff());
  return _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask(x, hidden, _CMP_EQ_OQ), hidden);
}

inline float reduce_add(Vec v) { return _mm512_reduce_add_ps(v); }
inline float reduce_max(Vec v) { return _mm512_reduce_max_ps(v); }

inline void interleave(Vec a, Vec b, Vec& low, Vec& high) {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  low = _mm512_permutex2var_ps(a, first, b);
  high = _mm512_permutex2var_ps(a, _mm512_add_epi32(first, _mm512_set1_epi32(8)), b);
}

inline Vec pair_sums(Vec a, Vec b) {
  return _mm512_shuffle_ps(a, b, 0x88) + _mm512_shuffle_ps(a, b, 0xdd);
}
inline Vec block_pair_sums(Vec a, Vec b) {
  return _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd);
}

inline Vec repeat(__m128 block) { return _mm512_broadcast_f32x4(block); }
inline Vec repeat(__m256 half) { return _mm512_broadcast_f32x8(half); }
template <int kN>
inline Vec load_repeated(const float* p) {
  if constexpr (kN == 8) return repeat(_mm256_loadu_ps(p));
  if constexpr (kN == 4) return repeat(_mm_loadu_ps(p));
}
template <int kN>
inline Vec load_repeated_first(const float* p, int n) {
  const __m256 first = _mm256_maskz_loadu_ps(static_cast<__mmask8>(first_lanes(n)), p);
  if constexpr (kN == 8) return repeat(first);
  if constexpr (kN == 4) return repeat(_mm256_castps256_ps128(first));
}
template <int kN, typename T>
inline Vec widen_repeated(const T* p, __m128i bits) {
  if constexpr (kN == 8) return widen(p, _mm256_broadcastsi128_si256(bits));
  if constexpr (kN == 4) return widen(p, _mm256_broadcastq_epi64(bits));
}
template <int kN, typename T>
inline Vec load_repeated(const T* p) {
  const auto* bits = reinterpret_cast<const __m128i*>(p);
  return widen_repeated<kN>(p, kN == 8 ? _mm_loadu_si128(bits) : _mm_loadl_epi64(bits));
}
template <int kN, typename T>
inline Vec load_repeated_first(const T* p, int n) {
  return widen_repeated<kN>(p, _mm_maskz_loadu_epi16(static_cast<__mmask8>(first_lanes(n)), p));
}

inline Vec load_four(const float* p) { return load_repeated<4>(p); }
template <int kLane>
inline Vec splat_lane(Vec four) {
  return _mm512_permute_ps(four, kLane * 0x55);
}

#if defined(__AVX512BF16__)
#define METAL_SDPA_PAIR_DOT
inline constexpr bool kHasPairDot = true;
inline Vec dot_pairs(Vec acc, Vec a, Vec b) {
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
inline void zip_pairs(Vec a, Vec b, Vec& low, Vec& high) {
  alignas(64) static constexpr std::uint16_t kFirst[32] = {
      0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i first = _mm512_load_si512(kFirst);
  const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
  const __m512i even = _mm512_castps_si512(a);
  const __m512i odd = _mm512_castps_si512(b);
  low = _mm512_castsi512_ps(_mm512_permutex2var_epi16(even, first, odd));
  high = _mm512_castsi512_ps(_mm512_permutex2var_epi16(even, second, odd));
}
inline Vec pair_of_ones() { return _mm512_castsi512_ps(_mm512_set1_epi32(0x3f803f80)); }
inline Vec upper_pairs(Vec a, Vec b) {
  alignas(64) static constexpr std::uint16_t kOddWords[32] = {
      1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
      33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_castsi512_ps(_mm512_permutex2var_epi16(
      _mm512_castps_si512(a), _mm512_load_si512(kOddWords), _mm512_castps_si512(b)));
}
inline Vec upper_half(Vec v) {
  return _mm512_and_ps(v, _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(0xffff0000))));
}
inline Vec add_bits(Vec v, const std::uint32_t* p) {
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), _mm512_loadu_si512(p)));
}
inline Vec absolute_pairs(Vec pairs) {
  return _mm512_and_ps(pairs, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fff7fff)));
}
inline std::uint32_t lanes_over(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline Vec sqrt(Vec v) { return _mm512_sqrt_ps(v); }
inline Vec load_pairs(const BF16* p) { return _mm512_castsi512_ps(_mm512_loadu_si512(p)); }
inline Vec load_pairs_first(const BF16* p, int n) {
  const auto first = static_cast<__mmask32>((std::uint64_t{1} << n) - 1);
  return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(first, p));
}
template <int kN>
inline Vec load_pairs_repeated(const BF16* p) {
  return load_repeated<kN>(reinterpret_cast<const float*>(p));
}
template <int kN>
inline Vec load_pairs_repeated_first(const BF16* p, int n) {
  const __m256 first = _mm256_castsi256_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
  if constexpr (kN == 8) return repeat(first);
  if constexpr (kN == 4) return repeat(_mm256_castps256_ps128(first));
}
#endif

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
