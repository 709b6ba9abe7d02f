// AVX-512 F, BW, DQ, VL on a processor with AVX2: the types and the intrinsics of
// csrc/cpu/fast/simd_avx512.h, 512 bits in two halves, so that tests run the very kernels of avx512
// and avx512_bf16 (METAL_SDPA_EMULATE_AVX512). Compiled in front of those kernels, and into their
// namespace, where the names hide the compiler's own.
//
// Every result has the bits of the instruction: what is fused stays fused, every rounding is that
// of AVX2's instruction for the same thing, and what a mask leaves out is neither read nor written.
#pragma once

#include <immintrin.h>

#include <cstdint>

// The compiler's headers are in; from here on these choose our own code.
#define __AVX512F__ 1
#if defined(METAL_SDPA_EMULATE_AVX512_BF16)
#define __AVX512BF16__ 1
#endif

#define METAL_SDPA_EMULATED static inline __attribute__((always_inline))

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

struct __m512 {
  __m256 low, high;
};
struct __m512i {
  __m256i low, high;
};
using __m512bh = const __m512&;

// --- operators, which GCC and Clang have for vectors
// ----------------------------------------------

METAL_SDPA_EMULATED __m512 operator+(__m512 a, __m512 b) {
  return {a.low + b.low, a.high + b.high};
}
METAL_SDPA_EMULATED __m512 operator-(__m512 a, __m512 b) {
  return {a.low - b.low, a.high - b.high};
}
METAL_SDPA_EMULATED __m512 operator*(__m512 a, __m512 b) {
  return {a.low * b.low, a.high * b.high};
}
METAL_SDPA_EMULATED __m512 operator/(__m512 a, __m512 b) {
  return {a.low / b.low, a.high / b.high};
}
METAL_SDPA_EMULATED __m512 operator-(__m512 a) { return {-a.low, -a.high}; }
METAL_SDPA_EMULATED __m512& operator+=(__m512& a, __m512 b) { return a = a + b; }
METAL_SDPA_EMULATED __m512& operator-=(__m512& a, __m512 b) { return a = a - b; }
METAL_SDPA_EMULATED __m512& operator*=(__m512& a, __m512 b) { return a = a * b; }
METAL_SDPA_EMULATED __m512& operator/=(__m512& a, __m512 b) { return a = a / b; }

// --- constants and bits
// ---------------------------------------------------------------------------

METAL_SDPA_EMULATED __m512 _mm512_set1_ps(float x) {
  return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
METAL_SDPA_EMULATED __m512i _mm512_set1_epi32(int x) {
  return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
METAL_SDPA_EMULATED __m512i _mm512_set1_epi16(short x) {
  return {_mm256_set1_epi16(x), _mm256_set1_epi16(x)};
}
#undef _mm512_setr_epi32
METAL_SDPA_EMULATED __m512i _mm512_setr_epi32(int a, int b, int c, int d, int e, int f, int g,
                                              int h, int i, int j, int k, int l, int m, int n,
                                              int o, int p) {
  return {_mm256_setr_epi32(a, b, c, d, e, f, g, h), _mm256_setr_epi32(i, j, k, l, m, n, o, p)};
}
METAL_SDPA_EMULATED __m512 _mm512_castsi512_ps(__m512i v) {
  return {_mm256_castsi256_ps(v.low), _mm256_castsi256_ps(v.high)};
}
METAL_SDPA_EMULATED __m512i _mm512_castps_si512(__m512 v) {
  return {_mm256_castps_si256(v.low), _mm256_castps_si256(v.high)};
}
METAL_SDPA_EMULATED __m512i _mm512_slli_epi32(__m512i v, int n) {
  return {_mm256_slli_epi32(v.low, n), _mm256_slli_epi32(v.high, n)};
}
METAL_SDPA_EMULATED __m512i _mm512_srli_epi32(__m512i v, int n) {
  return {_mm256_srli_epi32(v.low, n), _mm256_srli_epi32(v.high, n)};
}
METAL_SDPA_EMULATED __m512i _mm512_and_si512(__m512i a, __m512i b) {
  return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)};
}
METAL_SDPA_EMULATED __m512i _mm512_or_si512(__m512i a, __m512i b) {
  return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
}
METAL_SDPA_EMULATED __m512 _mm512_and_ps(__m512 a, __m512 b) {
  return {_mm256_and_ps(a.low, b.low), _mm256_and_ps(a.high, b.high)};
}
METAL_SDPA_EMULATED __m512i _mm512_add_epi32(__m512i a, __m512i b) {
  return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
METAL_SDPA_EMULATED __m512i _mm512_add_epi16(__m512i a, __m512i b) {
  return {_mm256_add_epi16(a.low, b.low), _mm256_add_epi16(a.high, b.high)};
}

// --- masks
// ----------------------------------------------------------------------------------------

/// All bits of lane i where bit i of the mask is set.
METAL_SDPA_EMULATED __m256i lanes_of(unsigned mask) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bit), bit);
}
METAL_SDPA_EMULATED __m512 _mm512_mask_mov_ps(__m512 unset, __mmask16 mask, __m512 set) {
  const __m256 low = _mm256_castsi256_ps(lanes_of(mask));
  const __m256 high = _mm256_castsi256_ps(lanes_of(mask >> 8));
  return {_mm256_blendv_ps(unset.low, set.low, low), _mm256_blendv_ps(unset.high, set.high, high)};
}
METAL_SDPA_EMULATED __m512 _mm512_maskz_mov_ps(__mmask16 mask, __m512 set) {
  return _mm512_mask_mov_ps(_mm512_set1_ps(0.0f), mask, set);
}
METAL_SDPA_EMULATED __m512i _mm512_mask_mov_epi32(__m512i unset, __mmask16 mask, __m512i set) {
  return _mm512_castps_si512(
      _mm512_mask_mov_ps(_mm512_castsi512_ps(unset), mask, _mm512_castsi512_ps(set)));
}
template <int kPredicate>
METAL_SDPA_EMULATED __mmask16 compare(__m512 a, __m512 b) {
  const int low = _mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, kPredicate));
  const int high = _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, kPredicate));
  return static_cast<__mmask16>(low | high << 8);
}
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask(a, b, predicate) compare<(predicate)>(a, b)

// --- memory
// ---------------------------------------------------------------------------------------

METAL_SDPA_EMULATED __m512 _mm512_loadu_ps(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
METAL_SDPA_EMULATED void _mm512_storeu_ps(float* p, __m512 v) {
  _mm256_storeu_ps(p, v.low);
  _mm256_storeu_ps(p + 8, v.high);
}
METAL_SDPA_EMULATED __m512i _mm512_loadu_si512(const void* p) {
  const auto* halves = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}
METAL_SDPA_EMULATED __m512i _mm512_load_si512(const void* p) {
  if (reinterpret_cast<std::uintptr_t>(p) % 64 != 0) __builtin_trap();  // as the instruction faults
  return _mm512_loadu_si512(p);
}
METAL_SDPA_EMULATED __m256 _mm256_maskz_loadu_ps(__mmask8 mask, const float* p) {
  return _mm256_maskload_ps(p, lanes_of(mask));
}
METAL_SDPA_EMULATED __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const float* p) {
  return {_mm256_maskload_ps(p, lanes_of(mask)), _mm256_maskload_ps(p + 8, lanes_of(mask >> 8))};
}
METAL_SDPA_EMULATED void _mm512_mask_storeu_ps(float* p, __mmask16 mask, __m512 v) {
  _mm256_maskstore_ps(p, lanes_of(mask), v.low);
  _mm256_maskstore_ps(p + 8, lanes_of(mask >> 8), v.high);
}

template <typename V>
METAL_SDPA_EMULATED V load_words(std::uint32_t mask, const void* p) {
  std::uint16_t words[sizeof(V) / 2] = {};
  for (unsigned i = 0; i < sizeof(V) / 2; ++i) {
    if ((mask >> i & 1) != 0) __builtin_memcpy(words + i, static_cast<const char*>(p) + 2 * i, 2);
  }
  V v;
  __builtin_memcpy(&v, words, sizeof(v));
  return v;
}
METAL_SDPA_EMULATED __m128i _mm_maskz_loadu_epi16(__mmask8 mask, const void* p) {
  return load_words<__m128i>(mask, p);
}
METAL_SDPA_EMULATED __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void* p) {
  return load_words<__m256i>(mask, p);
}
METAL_SDPA_EMULATED __m512i _mm512_maskz_loadu_epi16(__mmask32 mask, const void* p) {
  return load_words<__m512i>(mask, p);
}
METAL_SDPA_EMULATED void _mm256_mask_storeu_epi16(void* p, __mmask16 mask, __m256i v) {
  std::uint16_t words[16];
  __builtin_memcpy(words, &v, sizeof(v));
  for (int i = 0; i < 16; ++i) {
    if ((mask >> i & 1) != 0) __builtin_memcpy(static_cast<char*>(p) + 2 * i, words + i, 2);
  }
}

// --- arithmetic
// -----------------------------------------------------------------------------------

METAL_SDPA_EMULATED __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
METAL_SDPA_EMULATED __m512 _mm512_max_ps(__m512 a, __m512 b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
METAL_SDPA_EMULATED __m512 _mm512_sqrt_ps(__m512 v) {
  return {_mm256_sqrt_ps(v.low), _mm256_sqrt_ps(v.high)};
}
template <int kControl>
METAL_SDPA_EMULATED __m512 round_scale(__m512 v) {
  static_assert(kControl == _MM_FROUND_TO_NEAREST_INT, "no fraction bits are kept");
  return {_mm256_round_ps(v.low, kControl), _mm256_round_ps(v.high, kControl)};
}
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps(v, control) round_scale<(control)>(v)

/// v * 2^n for an integral n: two factors, both normal numbers for any n. Rounded once unless v is
/// below 2^-62.
METAL_SDPA_EMULATED __m256 scale_half(__m256 v, __m256 n) {
  const __m256 bounded =
      _mm256_max_ps(_mm256_min_ps(n, _mm256_set1_ps(252.0f)), _mm256_set1_ps(-252.0f));
  const __m256i whole = _mm256_cvtps_epi32(bounded);
  const __m256i first = _mm256_srai_epi32(whole, 1);
  const __m256i second = _mm256_sub_epi32(whole, first);
  const __m256i bias = _mm256_set1_epi32(127);
  const auto power = [&](__m256i e) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, bias), 23));
  };
  return v * power(first) * power(second);
}
METAL_SDPA_EMULATED __m512 _mm512_maskz_scalef_ps(__mmask16 mask, __m512 v, __m512 n) {
  return _mm512_maskz_mov_ps(mask, {scale_half(v.low, n.low), scale_half(v.high, n.high)});
}

METAL_SDPA_EMULATED float _mm512_reduce_add_ps(__m512 v) {
  const __m256 eight = v.high + v.low;
  const __m128 four = _mm256_extractf128_ps(eight, 1) + _mm256_castps256_ps128(eight);
  const __m128 two = four + _mm_movehl_ps(four, four);
  return _mm_cvtss_f32(two) + _mm_cvtss_f32(_mm_movehdup_ps(two));
}
METAL_SDPA_EMULATED float _mm512_reduce_max_ps(__m512 v) {
  const __m256 eight = _mm256_max_ps(v.high, v.low);
  const __m128 four = _mm_max_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ps(two, _mm_movehdup_ps(two)));
}

// --- conversions
// ----------------------------------------------------------------------------------

METAL_SDPA_EMULATED __m256i joined(__m128i low, __m128i high) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}
METAL_SDPA_EMULATED __m512 _mm512_cvtph_ps(__m256i bits) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(bits)),
          _mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1))};
}
template <int kControl>
METAL_SDPA_EMULATED __m256i to_half(__m512 v) {
  constexpr int kRounding = kControl & ~_MM_FROUND_NO_EXC;
  return joined(_mm256_cvtps_ph(v.low, kRounding), _mm256_cvtps_ph(v.high, kRounding));
}
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(v, control) to_half<(control)>(v)

METAL_SDPA_EMULATED __m512i _mm512_cvtepu16_epi32(__m256i words) {
  return {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(words)),
          _mm256_cvtepu16_epi32(_mm256_extracti128_si256(words, 1))};
}
METAL_SDPA_EMULATED __m256i _mm512_cvtepi32_epi16(__m512i v) {
  const __m256i word = _mm256_set1_epi32(0xffff);
  const __m256i packed =
      _mm256_packus_epi32(_mm256_and_si256(v.low, word), _mm256_and_si256(v.high, word));
  return _mm256_permute4x64_epi64(packed, 0xd8);
}

// --- lanes moved
// ----------------------------------------------------------------------------------

METAL_SDPA_EMULATED __m512 _mm512_permutex2var_ps(__m512 a, __m512i index, __m512 b) {
  alignas(32) float lanes[32];
  _mm512_storeu_ps(lanes, a);
  _mm512_storeu_ps(lanes + 16, b);
  const __m512i i = _mm512_and_si512(index, _mm512_set1_epi32(31));
  return {_mm256_i32gather_ps(lanes, i.low, 4), _mm256_i32gather_ps(lanes, i.high, 4)};
}
METAL_SDPA_EMULATED __m512i _mm512_permutex2var_epi16(__m512i a, __m512i index, __m512i b) {
  std::uint16_t words[64], indices[32], result[32];
  __builtin_memcpy(words, &a, sizeof(a));
  __builtin_memcpy(words + 32, &b, sizeof(b));
  __builtin_memcpy(indices, &index, sizeof(index));
  for (int i = 0; i < 32; ++i) result[i] = words[indices[i] & 63];
  __m512i v;
  __builtin_memcpy(&v, result, sizeof(v));
  return v;
}
template <int kChoice>
METAL_SDPA_EMULATED __m512 shuffle_in_blocks(__m512 a, __m512 b) {
  return {_mm256_shuffle_ps(a.low, b.low, kChoice), _mm256_shuffle_ps(a.high, b.high, kChoice)};
}
#undef _mm512_shuffle_ps
#define _mm512_shuffle_ps(a, b, choice) shuffle_in_blocks<(choice)>(a, b)
#undef _mm512_permute_ps
#define _mm512_permute_ps(v, choice) shuffle_in_blocks<(choice)>(v, v)

template <int kBlock>
METAL_SDPA_EMULATED __m128 block_of(__m512 v) {
  return _mm256_extractf128_ps(kBlock < 2 ? v.low : v.high, kBlock % 2);
}
template <int kChoice>
METAL_SDPA_EMULATED __m512 shuffle_blocks(__m512 a, __m512 b) {
  return {_mm256_set_m128(block_of<(kChoice >> 2 & 3)>(a), block_of<(kChoice & 3)>(a)),
          _mm256_set_m128(block_of<(kChoice >> 6 & 3)>(b), block_of<(kChoice >> 4 & 3)>(b))};
}
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4(a, b, choice) shuffle_blocks<(choice)>(a, b)

METAL_SDPA_EMULATED __m512 _mm512_broadcast_f32x8(__m256 half) { return {half, half}; }
METAL_SDPA_EMULATED __m512 _mm512_broadcast_f32x4(__m128 block) {
  return _mm512_broadcast_f32x8(_mm256_set_m128(block, block));
}

// --- AVX512_BF16
// ----------------------------------------------------------------------------------

/// Subnormal numbers are 0 to VDPBF16PS, on the way in and on the way out; the sign stays.
METAL_SDPA_EMULATED __m256 flushed(__m256 v) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  const __m256 kept =
      _mm256_cmp_ps(_mm256_andnot_ps(sign, v), _mm256_set1_ps(0x1p-126f), _CMP_NLT_UQ);
  return _mm256_and_ps(v, _mm256_or_ps(kept, sign));
}
/// The odd elements' products are added first, then the even ones', each rounded once to nearest.
METAL_SDPA_EMULATED __m256 dot_half(__m256 sum, __m256 a, __m256 b) {
  const auto odd = [](__m256 pairs) {
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    return flushed(_mm256_and_ps(pairs, _mm256_castsi256_ps(upper)));
  };
  const auto even = [](__m256 pairs) {
    return flushed(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(pairs), 16)));
  };
  sum = flushed(_mm256_fmadd_ps(odd(a), odd(b), flushed(sum)));
  return flushed(_mm256_fmadd_ps(even(a), even(b), sum));
}
METAL_SDPA_EMULATED __m512 _mm512_dpbf16_ps(__m512 sum, const __m512& a, const __m512& b) {
  return {dot_half(sum.low, a.low, b.low), dot_half(sum.high, a.high, b.high)};
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
