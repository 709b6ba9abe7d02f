// A vector of f32 of the machine's own width, and what the kernels do with it. Included only by
// *_kernel.cpp, which are compiled once for each instruction set: everything here stands in that
// instruction set's namespace, and nothing of the standard library's templates is used, so that no
// function compiled with wide instructions is ever linked into other code.
//
// Each instruction set's header defines, in that namespace:
//   Vec, kLanes                  kLanes f32; operators + - * / work lane by lane
//   kRowTile                     rows of a tile: kRowTile x 2 vectors of sums fill the registers,
//   or
//                                half of them and those of the chain before
//   kMostSums                    most vectors of sums at once
//   splat(x)  load(p)            any alignment; 16-bit elements are widened
//   store(p, v)                  16-bit elements round to nearest even, NaN is kept
//   load_first(p, n)             lanes below n (0 to kLanes), 0 in the others; reads no more
//   store_first(p, v, n)         writes no more
//   fma(a, b, c)                 a * b + c, fused where the machine can
//   max(a, b)                    lane by lane a > b ? a : b, hence b where one of them is NaN
//   round_to_integer(v)          ties to even; for |v| < 2^22
//   times_power_of_two(v, n)     v * 2^n for integral n in -127..127; 0 where n is -127
//   zero_unless_finite(x, v)     v, but 0 where x is infinite or NaN
//   keep_infinite(x, v)          v, but -inf where x is -inf
//   reduce_add(v) reduce_max(v)  over lanes, as a tree
//   interleave(a, b, lo, hi)     a0 b0 a1 b1 ..., its first and its second half
//   pair_sums(a, b)              in each block of 4 lanes: a0 + a1, a2 + a3, b0 + b1, b2 + b3
//   block_pair_sums(a, b)        the same of whole blocks, where there are several
//   load_repeated<n>(p)          n elements, from 4 to less than kLanes, repeated
//   load_repeated_first<n>(p, m) those below m, zeros for the others; reads no more
//   load_four(p)                 4 consecutive f32, repeated in each block
//   splat_lane<i>(four)          lane i of each block in all of its lanes
//   kHasPairDot                  whether there are dot products of bf16 pairs, two in each lane:
//     dot_pairs(acc, a, b)       acc + a.even * b.even + a.odd * b.odd
//     zip_pairs(a, b, lo, hi)    of 2 * kLanes bf16 each: a0 b0 a1 b1 ..., the first and the second
//                                half
//     pair_of_ones()
//     upper_pairs(a, b)          the upper halves of the 2 * kLanes values of a and b
//     upper_half(v)              v with the lower half of each lane's bits 0
//     add_bits(v, p)             the kLanes integers at p added to v's bits, lane by lane
//     absolute_pairs(pairs)      without their signs
//     lanes_over(a, b)           bit i: whether lane i of a is above that of b
//     sqrt(v)
//     load_pairs(p)              2 * kLanes consecutive bf16
//     load_pairs_first(p, n)     as load_first, n from 0 to 2 * kLanes
//     load_pairs_repeated<n>(p)  as load_repeated, n pairs
//     load_pairs_repeated_first<n>(p, m)   those of m bf16, zeros for the others
#pragma once

#include <cstdint>

#if defined(__AVX512F__)
#include "cpu/fast/simd_avx512.h"
#elif defined(__AVX2__)
#include "cpu/fast/simd_avx2.h"
#elif defined(__x86_64__)
#include "cpu/fast/simd_sse2.h"
#elif defined(__aarch64__)
#include "cpu/fast/simd_neon.h"
#endif
#if !defined(METAL_SDPA_PAIR_DOT)
#include "cpu/fast/simd_no_pairs.h"
#endif

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

inline constexpr float kInfinity = __builtin_inff();
inline constexpr float kLog2E = 1.44269504088896341f;

/// 2^x for x <= 127 within 3 units in the last place, exact for x = 0; 0 for x < -126.5.
inline Vec exp2(Vec x) {
  // 2^f = 1 + f * p(f) for |f| <= 1/2; p was fitted for the least relative error, 1.6 * 2^-24.
  const Vec bounded = max(splat(-127.0f), x);  // in this order a NaN stays
  const Vec n = round_to_integer(bounded);
  const Vec f = bounded - n;
  Vec p = splat(0x1.5bba14p-10f);
  p = fma(p, f, splat(0x1.3cea88p-7f));
  p = fma(p, f, splat(0x1.c6b752p-5f));
  p = fma(p, f, splat(0x1.ebf9bcp-3f));
  p = fma(p, f, splat(0x1.62e42ap-1f));
  p = fma(p, f, splat(1.0f));
  return times_power_of_two(p, n);
}

/// Rows become columns. Zipping the first half with the second, log2(kLanes) times over.
inline void transpose(Vec (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (int step = 1; step < kLanes; step *= 2) {
    Vec next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      interleave(rows[i], rows[i + kLanes / 2], next[2 * i], next[2 * i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

/// Vectors of parts of kPart lanes each, kPart vectors: sums of the lanes of each part, all by the
/// same tree, in blocks of 4: [vectors by fours][part][4].
template <int kPart>
inline Vec sums_of_parts(const Vec* v) {
  Vec sums[kPart];
#pragma GCC unroll 16
  for (int i = 0; i < kPart; ++i) sums[i] = v[i];
#pragma GCC unroll 2
  for (int half = kPart / 2; half >= kPart / 4; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) sums[i] = pair_sums(sums[2 * i], sums[2 * i + 1]);
  }
  if constexpr (kPart > 4) {
#pragma GCC unroll 2
    for (int half = kPart / 8; half > 0; half /= 2) {
#pragma GCC unroll 2
      for (int i = 0; i < half; ++i) sums[i] = block_pair_sums(sums[2 * i], sums[2 * i + 1]);
    }
  }
  return sums[0];
}

/// Lane i of the result is the sum of the lanes of v[i].
inline Vec sums_of_lanes(const Vec* v) { return sums_of_parts<kLanes>(v); }

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
