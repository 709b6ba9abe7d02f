// 8x8 matrices over a simdgroup, as the two elements that each lane holds.
//
// The lane layout is that of simdgroup_matrix on every Apple GPU that has it: lane l holds row
// (l / 16) * 4 + l % 8 / 2 and, of that row, columns 2 * pair and 2 * pair + 1 with
// pair = (l % 16 / 8) * 2 + l % 2.
#ifndef METAL_SDPA_FRAGMENT_H
#define METAL_SDPA_FRAGMENT_H

#include <metal_simdgroup_matrix>
#include <metal_stdlib>

#include "sdpa_args.h"
#include "unroll.h"

constant bool aligned_constant [[function_constant(SDPA_CONSTANT_ALIGNED)]];
constant bool aligned_rows =
    is_function_constant_defined(aligned_constant) ? aligned_constant : false;

namespace metal_sdpa {

/// Where a lane's two elements stand.
struct LanePosition {
  int row;
  int pair;
};

inline LanePosition lane_position(int lane) {
  LanePosition position;
  position.row = (lane / 16) * 4 + lane % 8 / 2;
  position.pair = (lane % 16 / 8) * 2 + lane % 2;
  return position;
}

/// The lane at a position.
inline int lane_at(int row, int pair) {
  return row / 4 * 16 + pair / 2 * 8 + row % 4 * 2 + pair % 2;
}

/// a b + c, in f32. A and B may differ: the matrix unit takes operands of two types.
template <typename A, typename B>
inline float2 multiply_accumulate(metal::vec<A, 2> a, metal::vec<B, 2> b, float2 c) {
  metal::simdgroup_matrix<A, 8, 8> a_matrix;
  metal::simdgroup_matrix<B, 8, 8> b_matrix;
  metal::simdgroup_matrix<float, 8, 8> c_matrix;
  reinterpret_cast<thread metal::vec<A, 2>&>(a_matrix.thread_elements()) = a;
  reinterpret_cast<thread metal::vec<B, 2>&>(b_matrix.thread_elements()) = b;
  reinterpret_cast<thread float2&>(c_matrix.thread_elements()) = c;
  metal::simdgroup_multiply_accumulate(c_matrix, a_matrix, b_matrix, c_matrix);
  return reinterpret_cast<thread float2&>(c_matrix.thread_elements());
}

/// Largest value of each column, in every lane of the column.
inline float2 column_max(float2 v) {
  SDPA_UNROLL
  for (int i = 0; i < 3; ++i) {
    const ushort mask = i == 0 ? 2 : i == 1 ? 4 : 16;  // the lane bits that number rows
    v.x = metal::max(v.x, metal::simd_shuffle_xor(v.x, mask));
    v.y = metal::max(v.y, metal::simd_shuffle_xor(v.y, mask));
  }
  return v;
}

/// Sum of each column, in every lane of the column.
inline float2 column_sum(float2 v) {
  SDPA_UNROLL
  for (int i = 0; i < 3; ++i) {
    const ushort mask = i == 0 ? 2 : i == 1 ? 4 : 16;
    v.x += metal::simd_shuffle_xor(v.x, mask);
    v.y += metal::simd_shuffle_xor(v.y, mask);
  }
  return v;
}

/// Element `at.row` of a vector whose elements 2 * pair and 2 * pair + 1 every lane of that pair
/// holds.
inline float element_of_row(float2 v, LanePosition at) {
  const ushort source = ushort(lane_at(0, at.row / 2));
  const float even = metal::simd_shuffle(v.x, source);
  const float odd = metal::simd_shuffle(v.y, source);
  return at.row % 2 == 0 ? even : odd;
}

/// Rows, one bit each, of which some lane has the flag.
inline uint rows_with(bool flag, LanePosition at) {
  uint rows = 0;
  SDPA_ROLLED
  for (int row = 0; row < 8; ++row) {
    if (metal::simd_any(flag && at.row == row)) rows |= 1u << row;
  }
  return rows;
}

/// The transpose of an 8x8 matrix of floats.
inline float2 transposed(float2 v, LanePosition at) {
  const ushort first = ushort(lane_at(2 * at.pair, at.row / 2));
  const ushort second = ushort(lane_at(2 * at.pair + 1, at.row / 2));
  const float even_first = metal::simd_shuffle(v.x, first);
  const float odd_first = metal::simd_shuffle(v.y, first);
  const float even_second = metal::simd_shuffle(v.x, second);
  const float odd_second = metal::simd_shuffle(v.y, second);
  const bool even = at.row % 2 == 0;
  return float2(even ? even_first : odd_first, even ? even_second : odd_second);
}

/// The transpose of an 8x8 matrix of 16-bit elements: both of a lane travel as one word.
template <typename T>
inline metal::vec<T, 2> transposed(metal::vec<T, 2> v, LanePosition at) {
  const uint pair = as_type<uint>(v);
  const uint first = metal::simd_shuffle(pair, ushort(lane_at(2 * at.pair, at.row / 2)));
  const uint second = metal::simd_shuffle(pair, ushort(lane_at(2 * at.pair + 1, at.row / 2)));
  const uint even = (first & 0xffffu) | (second << 16);
  const uint odd = (first >> 16) | (second & 0xffff0000u);
  return as_type<metal::vec<T, 2>>(at.row % 2 == 0 ? even : odd);
}

/// 16 neighbouring bytes of a row, as a lane's pairs of 16 / (2 * sizeof(T)) fragments.
template <typename T>
inline void load_pairs(device const T* source, thread metal::vec<T, 2>* pairs) {
  if (aligned_rows) {
    const uint4 words = *reinterpret_cast<device const uint4*>(source);
    pairs[0] = as_type<metal::vec<T, 2>>(words.x);
    pairs[1] = as_type<metal::vec<T, 2>>(words.y);
    pairs[2] = as_type<metal::vec<T, 2>>(words.z);
    pairs[3] = as_type<metal::vec<T, 2>>(words.w);
    return;
  }
  SDPA_UNROLL
  for (int i = 0; i < 4; ++i) pairs[i] = metal::vec<T, 2>(source[2 * i], source[2 * i + 1]);
}

inline void load_pairs(device const float* source, thread float2* pairs) {
  if (aligned_rows) {
    const float4 words = *reinterpret_cast<device const float4*>(source);
    pairs[0] = float2(words.x, words.y);
    pairs[1] = float2(words.z, words.w);
    return;
  }
  pairs[0] = float2(source[0], source[1]);
  pairs[1] = float2(source[2], source[3]);
}

}  // namespace metal_sdpa

#endif  // METAL_SDPA_FRAGMENT_H
