// simd.h for Armv8-A Advanced SIMD, and FEAT_BF16 where it is compiled in.
#pragma once

#include <arm_neon.h>

#include "cpu/fast/elements.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

using Vec = float32x4_t;
inline constexpr int kLanes = 4;
inline constexpr int kRowTile = 12;  // 24 sums, 2 columns and a factor, of 32 registers
inline constexpr int kMostSums = 2 * kRowTile;

inline Vec splat(float x) { return vdupq_n_f32(x); }

inline Vec load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, Vec v) { vst1q_f32(p, v); }

inline Vec widen(const F16*, uint16x4_t bits) { return vcvt_f32_f16(vreinterpret_f16_u16(bits)); }
inline Vec widen(const BF16*, uint16x4_t bits) {
  return vreinterpretq_f32_u32(vshll_n_u16(bits, 16));
}
inline uint16x4_t narrow(const F16*, Vec v) { return vreinterpret_u16_f16(vcvt_f16_f32(v)); }
inline uint16x4_t narrow(const BF16*, Vec v) {
  const uint32x4_t bits = vreinterpretq_u32_f32(v);
  const uint32x4_t upper = vshrq_n_u32(bits, 16);
  const uint32x4_t bias = vaddq_u32(vdupq_n_u32(0x7fff), vandq_u32(upper, vdupq_n_u32(1)));
  const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(bits, bias), 16);
  const uint32x4_t quiet = vorrq_u32(upper, vdupq_n_u32(0x40));
  return vmovn_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet));
}

template <typename T>
inline Vec load(const T* p) {
  return widen(p, vld1_u16(&p->bits));
}
template <typename T>
inline void store(T* p, Vec v) {
  vst1_u16(&p->bits, narrow(p, v));
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

inline Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
inline Vec max(Vec a, Vec b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline Vec round_to_integer(Vec v) { return vrndnq_f32(v); }
inline Vec times_power_of_two(Vec v, Vec n) {
  // The exponent field of 2^n; 0, hence a factor of 0, for n = -127.
  const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
  return vmulq_f32(v, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
}
inline Vec zero_unless_finite(Vec x, Vec v) {
  const Vec difference = x - x;
  const uint32x4_t finite = vceqq_f32(difference, difference);
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), finite));
}
inline Vec keep_infinite(Vec x, Vec v) {
  return vbslq_f32(vceqq_f32(x, splat(-__builtin_inff())), x, v);
}

inline float reduce_add(Vec v) { return vaddvq_f32(v); }
inline float reduce_max(Vec v) { return vmaxvq_f32(v); }

inline void interleave(Vec a, Vec b, Vec& low, Vec& high) {
  low = vzip1q_f32(a, b);
  high = vzip2q_f32(a, b);
}

inline Vec pair_sums(Vec a, Vec b) { return vpaddq_f32(a, b); }

Vec block_pair_sums(Vec a, Vec b);  // a vector is one block
template <int kN, typename T>
Vec load_repeated(const T* p);
template <int kN, typename T>
Vec load_repeated_first(const T* p, int n);

inline Vec load_four(const float* p) { return load(p); }
template <int kLane>
inline Vec splat_lane(Vec four) {
  return vdupq_laneq_f32(four, kLane);
}

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define METAL_SDPA_PAIR_DOT
inline constexpr bool kHasPairDot = true;
inline Vec dot_pairs(Vec acc, Vec a, Vec b) {
  return vbfdotq_f32(acc, vreinterpretq_bf16_f32(a), vreinterpretq_bf16_f32(b));
}
inline void zip_pairs(Vec a, Vec b, Vec& low, Vec& high) {
  const uint16x8_t even = vreinterpretq_u16_f32(a);
  const uint16x8_t odd = vreinterpretq_u16_f32(b);
  low = vreinterpretq_f32_u16(vzip1q_u16(even, odd));
  high = vreinterpretq_f32_u16(vzip2q_u16(even, odd));
}
inline Vec pair_of_ones() {
  std::uint32_t ones = 0x3f803f80;
  // g++ 12 would make a bf16 constant of it, by an instruction that only Armv8.2-A with FP16 has.
  __asm__("" : "+r"(ones));
  return vreinterpretq_f32_u32(vdupq_n_u32(ones));
}
inline Vec upper_pairs(Vec a, Vec b) {
  return vreinterpretq_f32_u16(vuzp2q_u16(vreinterpretq_u16_f32(a), vreinterpretq_u16_f32(b)));
}
inline Vec upper_half(Vec v) {
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vdupq_n_u32(0xffff0000)));
}
inline Vec add_bits(Vec v, const std::uint32_t* p) {
  return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(v), vld1q_u32(p)));
}
inline Vec absolute_pairs(Vec pairs) {
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(pairs), vdupq_n_u32(0x7fff7fff)));
}
inline std::uint32_t lanes_over(Vec a, Vec b) {
  constexpr std::uint32_t kBits[kLanes] = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(vld1q_u32(kBits), vcgtq_f32(a, b)));
}
inline Vec sqrt(Vec v) { return vsqrtq_f32(v); }
inline Vec load_pairs(const BF16* p) { return vreinterpretq_f32_u16(vld1q_u16(&p->bits)); }
inline Vec load_pairs_first(const BF16* p, int n) {
  BF16 pairs[2 * kLanes] = {};
  copy_elements(p, pairs, n);
  return load_pairs(pairs);
}
template <int kN>
Vec load_pairs_repeated(const BF16* p);
template <int kN>
Vec load_pairs_repeated_first(const BF16* p, int n);
#endif

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
