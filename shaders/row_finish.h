// The end of a row whose keys are all in its state: the sink joins, numerators are divided, the
// result is written.
#ifndef METAL_SDPA_ROW_FINISH_H
#define METAL_SDPA_ROW_FINISH_H

#include <metal_stdlib>

#include "score_rule.h"
#include "sdpa_args.h"
#include "softmax_state.h"

constant bool sinks_constant [[function_constant(SDPA_CONSTANT_SINKS)]];
constant bool out_f32_constant [[function_constant(SDPA_CONSTANT_OUT_F32)]];
constant bool has_sinks = is_function_constant_defined(sinks_constant) ? sinks_constant : false;
constant bool out_is_f32 =
    is_function_constant_defined(out_f32_constant) ? out_f32_constant : false;

namespace metal_sdpa {

/// What a row's numerators are multiplied by, one after the other, and its log-sum-exp. Beside a
/// sink far above its keys one factor alone would be too small for a float, where its product with
/// a numerator is not.
struct RowFinish {
  float keys;
  float inverse;
  float lse;
};

/// The sink of query head h; `sinks` is read only where there are some.
inline float sink_of(device const uchar* sinks, thread const SdpaArgs& args, long h) {
  if (!has_sinks) return -INFINITY;
  return element_of_kind(sinks, args.sinks_kind, args.sinks_offset + h * args.sinks_head);
}

/// Ends a state. A sink is one more score of the row, which has no value.
inline RowFinish finish_row(float reference, float sum, float sink) {
  RowFinish row;
  row.keys = 1.0f;
  if (!has_sinks || !(sink > reference)) {
    const float total = has_sinks ? sum + weight_of(sink, subtrahend(reference)) : sum;
    row.inverse = inverse_of_sum(total);
    row.lse = log_sum_exp(reference, total);
    return row;
  }
  const float next = reference_above(sink);
  const float exponent = metal::max(rescale_exponent(reference, next), -250.0f);
  const float half_exponent = metal::floor(0.5f * exponent);
  row.keys = metal::exp2(half_exponent);
  const float other = metal::exp2(exponent - half_exponent);
  const float total = sum * row.keys * other + weight_of(sink, next);
  row.inverse = other * inverse_of_sum(total);
  row.lse = sum == 0.0f ? sink : log_sum_exp(next, total);
  return row;
}

/// An element of the result.
inline float finished(float numerator, RowFinish row) {
  return normalised(has_sinks ? numerator * row.keys : numerator, row.inverse);
}

/// Element `index` of the output.
template <typename T>
inline void store_element(device T* out, long index, float value) {
  if (out_is_f32) {
    reinterpret_cast<device float*>(out)[index] = value;
  } else {
    out[index] = T(value);
  }
}

}  // namespace metal_sdpa

#endif  // METAL_SDPA_ROW_FINISH_H
