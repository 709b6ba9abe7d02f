// A launch's arguments and tensors, as the kernels read them. In each instruction set's namespace
// for the reason that simd.h gives: the inline members of NativeLaunch are not called here.
#pragma once

#include "cpu/key_place.h"
#include "metal_sdpa/native_kernel.h"
#include "shaders/sdpa_args.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

template <typename T>
constexpr T smaller(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
constexpr T larger(T a, T b) {
  return a < b ? b : a;
}

inline const SdpaArgs& args_of(const NativeLaunch& launch) {
  return *static_cast<const SdpaArgs*>(launch.bindings[SDPA_BUFFER_ARGS].data);
}

inline SdpaSequence sequence_of(const NativeLaunch& launch, sdpa_i64 b) {
  const void* sequences = launch.bindings[SDPA_BUFFER_SEQUENCES].data;
  if (sequences != nullptr) return static_cast<const SdpaSequence*>(sequences)[b];
  return args_of(launch).sequence;
}

/// Spans begin..end, numbered from key 0.
struct SpanRange {
  sdpa_i64 begin;
  sdpa_i64 end;

  sdpa_i64 count() const { return end - begin; }
};

/// The spans that hold keys of a band.
inline SpanRange spans_of(const SdpaBand& band, sdpa_i64 span_len) {
  if (band.begin >= band.end) return {0, 0};
  if (band.end <= span_len) return {0, 1};  // divisions are slow
  return {band.begin / span_len, (band.end + span_len - 1) / span_len};
}

/// Keys of a block that a row sees, counted from the block's first; none: 0, 0.
struct SeenKeys {
  int begin;
  int end;
};

/// The part of `band` within `n_keys` keys from `first` on.
inline SeenKeys seen_keys(const SdpaBand& band, sdpa_i64 first, sdpa_i64 n_keys) {
  const sdpa_i64 begin = larger<sdpa_i64>(band.begin - first, 0);
  const sdpa_i64 end = smaller<sdpa_i64>(band.end - first, n_keys);
  if (begin >= end) return {0, 0};
  return {static_cast<int>(begin), static_cast<int>(end)};
}

/// Rows of one (batch, head) of a tensor: row i starts at data + i * stride.
template <typename T>
struct Rows {
  T* data;
  sdpa_i64 stride;

  T* operator[](sdpa_i64 i) const { return data + i * stride; }
};

template <typename T>
inline Rows<T> rows_of(const BoundMemory& memory, sdpa_i64 offset, const SdpaStrides& stride,
                       sdpa_i64 b, sdpa_i64 h) {
  return {static_cast<T*>(memory.data) + offset + b * stride.batch + h * stride.head, stride.row};
}

template <typename T>
inline Rows<const T> query_rows(const NativeLaunch& launch, const SdpaSequence& sequence,
                                sdpa_i64 b, sdpa_i64 h) {
  const SdpaArgs& args = args_of(launch);
  return rows_of<const T>(launch.bindings[SDPA_BUFFER_Q],
                          args.q_offset + sequence.q_row * args.q_stride.row, args.q_stride, b, h);
}
/// T is what the output holds.
template <typename T>
inline Rows<T> output_rows(const NativeLaunch& launch, const SdpaSequence& sequence, sdpa_i64 b,
                           sdpa_i64 h) {
  const SdpaArgs& args = args_of(launch);
  return rows_of<T>(launch.bindings[SDPA_BUFFER_OUT],
                    args.out_offset + sequence.q_row * args.out_stride.row, args.out_stride, b, h);
}

/// The log-sum-exps of one (batch, head), [L]; nullptr where they are not asked for.
inline float* lse_rows(const NativeLaunch& launch, const SdpaSequence& sequence, sdpa_i64 b,
                       sdpa_i64 h) {
  float* lse = static_cast<float*>(launch.bindings[SDPA_BUFFER_LSE].data);
  const SdpaArgs& args = args_of(launch);
  return lse == nullptr ? nullptr : lse + b * args.lse_batch + h * args.lse_head + sequence.q_row;
}

/// Rows of a sequence that are to be written, under one KV head.
inline sdpa_i64 rows_to_write(const SdpaArgs& args, const SdpaSequence& sequence) {
  return written_rows(args, sequence) * (args.n_heads / args.n_kv_heads);
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
