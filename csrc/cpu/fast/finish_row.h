// From the state of a row to its output and log-sum-exp.
#pragma once

#include "cpu/fast/prefill_pack.h"
#include "cpu/fast/prefill_totals.h"
#include "cpu/fast/score_rule.h"
#include "cpu/fast/support.h"
#include "cpu/lone_row.h"
#include "cpu/row_end.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

template <typename T>
inline constexpr ElementKind kKindOf = ElementKind::f32;
template <>
inline constexpr ElementKind kKindOf<F16> = ElementKind::f16;
template <>
inline constexpr ElementKind kKindOf<BF16> = ElementKind::bf16;

/// Whether all of n_slots floats, whole vectors, are finite.
inline bool all_finite(const float* slots, int n_slots) {
  Vec zero = splat(0.0f);
  for (int d = 0; d < n_slots; d += kLanes) zero = fma(load(slots + d), splat(0.0f), zero);
  return reduce_add(zero) == 0;
}

/// Values times `factor` over `divisor`.
template <typename T>
inline void store_row(const float* values, Vec factor, Vec divisor, int value_dim, T* out) {
  int d = 0;
  for (; d + kLanes <= value_dim; d += kLanes) {
    store(out + d, load(values + d) * factor / divisor);
  }
  if (d < value_dim) store_first(out + d, load(values + d) * factor / divisor, value_dim - d);
}

/// What a row's numerators become, and its log-sum-exp.
struct RowFinish {
  const float* values;
  float factor;  ///< before the division
  float divisor;
  float lse;
};

template <typename T>
inline void write_row(const NativeLaunch& launch, const RowPlace& row, const RowFinish& finish) {
  const SdpaArgs& args = args_of(launch);
  const int value_dim = static_cast<int>(args.value_dim);
  const SdpaSequence sequence = sequence_of(launch, row.b);
  const Vec factor = splat(finish.factor);
  const Vec divisor = splat(finish.divisor);
  if (args.out_f32 != 0) {
    float* out = output_rows<float>(launch, sequence, row.b, row.h)[row.i];
    store_row(finish.values, factor, divisor, value_dim, out);
  } else {
    store_row(finish.values, factor, divisor, value_dim,
              output_rows<T>(launch, sequence, row.b, row.h)[row.i]);
  }
  float* lse = lse_rows(launch, sequence, row.b, row.h);
  if (lse != nullptr) lse[row.i] = finish.lse;
}

template <typename T>
[[gnu::noinline]] void finish_lone_row(const NativeLaunch& launch, const RowPlace& row,
                                       StopToken& stop) {
  float values[1024 + kLanes] = {};
  float lse;
  if (!attend_lone_row(launch, args_of(launch), kKindOf<T>, row, stop, values, lse)) return;
  write_row<T>(launch, row, {values, 1, 1, lse});
}

/// One more weight, that has no value.
inline RowFinish finish_with_sink(const RowState& state, float sink) {
  constexpr double kLn2 = 0.693147180559945309;
  const RowEnd end = end_with_sink(state.reference * kLn2, state.sum, sink);
  // A divisor that is out of range of f32 may leave subnormal numbers.
  const bool is_large = end.divisor > 0x1p100;
  const double factor = is_large ? 0x1p-64 : 1;
  return {state.numerators, static_cast<float>(factor), static_cast<float>(end.divisor * factor),
          end.lse};
}

/// Writes a row of the output and its log-sum-exp. `keys`: its band. Numerators are whole vectors.
/// A row that sees no key is 0, its log-sum-exp -inf or the sink. When asked to stop a row may stay
/// as it was.
template <typename T>
inline void finish_row(const NativeLaunch& launch, const RowPlace& row, const RowState& state,
                       const SdpaBand& keys, const ScoreRule& rule, StopToken& stop) {
  const SdpaArgs& args = args_of(launch);
  const bool has_sink = args.sinks_kind != SDPA_ELEMENT_NONE;
  const bool sees_keys = keys.begin < keys.end;
  if (!sees_keys || (state.sum == 0 && rule.hides_all(row.h, row.i, keys))) {
    const float lse = has_sink ? head_sink(launch, args, row.h) : -kInfinity;
    return write_row<T>(launch, row, {kZeroRow, 1, 1, lse});
  }
  const int width = (static_cast<int>(args.value_dim) + kLanes - 1) / kLanes * kLanes;
  // Where infinities meet, a NaN may be the arithmetic's own.
  const bool is_in_range = rule.is_in_range(row.h) && (!rule.is_on() || state.sum == state.sum);
  const bool is_lone =
      !is_in_range ||
      needs_lone_row({state.reference, state.sum, all_finite(state.numerators, width), sees_keys});
  if (is_lone) return finish_lone_row<T>(launch, row, stop);
  if (rule.is_swallowed(state.reference)) {
    // Beside a sink in range such keys have no weight at all.
    const float sink = has_sink ? head_sink(launch, args, row.h) : -kInfinity;
    if (sink > -0x1p100f) return write_row<T>(launch, row, {kZeroRow, 1, 1, sink});
    float bias;
    if (has_sink || !rule.has_one_bias(row.h, row.i, keys, state.reference, bias)) {
      return finish_lone_row<T>(launch, row, stop);
    }
    return write_row<T>(launch, row, {state.numerators, 1, state.sum, bias});
  }
  if (has_sink) {
    return write_row<T>(launch, row, finish_with_sink(state, head_sink(launch, args, row.h)));
  }
  write_row<T>(launch, row,
               {state.numerators, 1, state.sum, log_sum_exp(state.reference, state.sum)});
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
