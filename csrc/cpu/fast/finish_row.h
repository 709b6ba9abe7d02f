// From the state of a row to its output and log-sum-exp.
#pragma once

#include "cpu/fast/prefill_pack.h"
#include "cpu/fast/prefill_totals.h"
#include "cpu/fast/support.h"
#include "cpu/lone_row.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

template <typename T>
inline constexpr ElementKind kKindOf = ElementKind::f32;
template <>
inline constexpr ElementKind kKindOf<F16> = ElementKind::f16;
template <>
inline constexpr ElementKind kKindOf<BF16> = ElementKind::bf16;

/// One row of the output and what it is attended to.
template <typename T>
struct FinishedRow {
  const T* q;
  Rows<const T> keys;
  Rows<const T> values;
  sdpa_i64 n_visible;
  T* out;
  float* lse;  ///< nullptr: not asked for
};

/// Whether all of n_slots floats, whole vectors, are finite.
inline bool all_finite(const float* slots, int n_slots) {
  Vec zero = splat(0.0f);
  for (int d = 0; d < n_slots; d += kLanes) zero = fma(load(slots + d), splat(0.0f), zero);
  return reduce_add(zero) == 0;
}

template <typename T>
inline void store_row(const float* values, Vec divisor, int value_dim, T* out) {
  int d = 0;
  for (; d + kLanes <= value_dim; d += kLanes) store(out + d, load(values + d) / divisor);
  if (d < value_dim) store_first(out + d, load(values + d) / divisor, value_dim - d);
}

template <typename T>
[[gnu::noinline]] void finish_lone_row(const SdpaArgs& args, const FinishedRow<T>& row,
                                       StopToken& stop) {
  float values[1024 + kLanes] = {};
  const LoneRow lone{
      kKindOf<T>,        row.q,         row.keys.data, row.values.data, row.keys.stride,
      row.values.stride, row.n_visible, args.head_dim, args.value_dim,  args.scale};
  float lse;
  if (!attend_lone_row(lone, stop, values, lse)) return;
  store_row(values, splat(1.0f), static_cast<int>(args.value_dim), row.out);
  if (row.lse != nullptr) *row.lse = lse;
}

/// Numerators are whole vectors. A row that sees no key is 0, its log-sum-exp -inf. When asked to
/// stop a row may stay as it was.
template <typename T>
inline void finish_row(const SdpaArgs& args, const RowState& state, const FinishedRow<T>& row,
                       StopToken& stop) {
  const int value_dim = static_cast<int>(args.value_dim);
  const int width = (value_dim + kLanes - 1) / kLanes * kLanes;
  const bool sees_keys = row.n_visible > 0;
  const float scale = args.scale * kLog2E;
  const auto is_lone = [&] {
    if (scale - scale != 0) return true;  // infinite, and so is every score
    return needs_lone_row(
        {state.reference, state.sum, all_finite(state.numerators, width), sees_keys});
  };
  if (sees_keys && is_lone()) return finish_lone_row(args, row, stop);
  const float* values = sees_keys ? state.numerators : kZeroRow;
  store_row(values, splat(sees_keys ? state.sum : 1.0f), value_dim, row.out);
  if (row.lse != nullptr) {
    *row.lse = sees_keys ? log_sum_exp(state.reference, state.sum) : -kInfinity;
  }
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
