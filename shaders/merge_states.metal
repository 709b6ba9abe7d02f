// States of attention over parts of the keys become the state over all of them:
//   m = max_i lse_i,  w_i = exp(lse_i - m)
//   out = sum_i w_i out_i / sum_i w_i,  lse = m + log(sum_i w_i)
// A state whose lse is -inf has seen no key: it counts for nothing, whatever its out holds.
#include <metal_stdlib>

#include "merge_states_args.h"
#include "softmax_state.h"

namespace metal_sdpa {

/// The log-sum-exps of one row's states.
struct RowStates {
  device const float* lses;
  long stride;
  int count;

  float lse(int i) const { return lses[i * stride]; }
};

/// NaN where one of them is.
inline float largest_lse(thread const RowStates& row) {
  float largest = -INFINITY;
  for (int i = 0; i < row.count; ++i) {
    const float lse = row.lse(i);
    if (lse > largest || lse != lse) largest = lse;
    if (lse != lse) break;
  }
  return largest;
}

/// In units of the largest one's.
inline float sum_of_weights(thread const RowStates& row, float largest) {
  float sum = 0.0f;
  float compensation = 0.0f;
  for (int i = 0; i < row.count; ++i) {
    const float lse = row.lse(i);
    if (lse == -INFINITY) continue;
    compensated_add_special(sum, compensation, weight_of(lse, largest));
  }
  return sum;
}

/// A column of the result: values by their shares of the weights, whose sum is a mean and never out
/// of range.
template <typename In>
inline float merge_column(thread const RowStates& row, float largest, float weight,
                          device const In* outs, long stride) {
  float value = 0.0f;
  float compensation = 0.0f;
  for (int i = 0; i < row.count; ++i) {
    const float lse = row.lse(i);
    if (lse == -INFINITY) continue;
    const float share = weight_of(lse, largest) / weight;
    compensated_add_special(value, compensation, weighted(float(outs[i * stride]), share));
  }
  return value;
}

}  // namespace metal_sdpa

/// Threadgroups (B, H, rows) of SDPA_STATES_COLUMNS threads. Out may be the memory of a state: a
/// row is read before any of it is written.
template <typename In, typename Out>
[[kernel]] void merge_states(device const In* outs [[buffer(SDPA_STATES_BUFFER_OUTS)]],
                             device const float* lses [[buffer(SDPA_STATES_BUFFER_LSES)]],
                             device Out* out [[buffer(SDPA_STATES_BUFFER_OUT)]],
                             device float* lse [[buffer(SDPA_STATES_BUFFER_LSE)]],
                             constant MergeArgs& constant_args [[buffer(SDPA_STATES_BUFFER_ARGS)]],
                             uint3 group [[threadgroup_position_in_grid]],
                             uint thread_index [[thread_index_in_threadgroup]]) {
  using namespace metal_sdpa;
  const MergeArgs args = constant_args;
  const long b = long(group.x), h = long(group.y), i = long(group.z);
  RowStates row;
  row.lses = lses + args.lses_offset + b * args.lses_stride.batch + h * args.lses_stride.head +
             i * args.lses_stride.row;
  row.stride = args.lses_stride.state;
  row.count = int(args.n_states);
  device const In* outs_row = outs + args.outs_offset + b * args.outs_stride.batch +
                              h * args.outs_stride.head + i * args.outs_stride.row;
  device Out* out_row = out + args.out_offset + b * args.out_stride.batch +
                        h * args.out_stride.head + i * args.out_stride.row;
  const float largest = largest_lse(row);
  const float weight = sum_of_weights(row, largest);
  for (int first = 0; first < int(args.width); first += SDPA_STATES_COLUMNS) {
    const int column = first + int(thread_index);
    const bool exists = column < int(args.width);
    float value = 0.0f;
    if (exists && weight != 0.0f) {
      value = merge_column(row, largest, weight, outs_row + column, args.outs_stride.state);
    }
    metal::threadgroup_barrier(metal::mem_flags::mem_device);
    if (exists) out_row[column] = Out(value);
  }
  metal::threadgroup_barrier(metal::mem_flags::mem_device);
  if (thread_index != 0) return;
  device float* lse_row = lse + args.lse_offset + b * args.lse_stride.batch +
                          h * args.lse_stride.head + i * args.lse_stride.row;
  *lse_row = weight == 0.0f ? -INFINITY : metal::fma(metal::log2(weight), kLn2, largest);
}

#define SDPA_INSTANTIATE(name, in, out)   \
  template [[host_name(name)]] [[kernel]] \
  decltype(merge_states<in, out>) merge_states<in, out>;
SDPA_INSTANTIATE("merge_states_f32_f32", float, float)
SDPA_INSTANTIATE("merge_states_f32_f16", float, half)
SDPA_INSTANTIATE("merge_states_f32_bf16", float, bfloat)
SDPA_INSTANTIATE("merge_states_f16_f32", half, float)
SDPA_INSTANTIATE("merge_states_f16_f16", half, half)
SDPA_INSTANTIATE("merge_states_f16_bf16", half, bfloat)
SDPA_INSTANTIATE("merge_states_bf16_f32", bfloat, float)
SDPA_INSTANTIATE("merge_states_bf16_f16", bfloat, half)
SDPA_INSTANTIATE("merge_states_bf16_bf16", bfloat, bfloat)
#undef SDPA_INSTANTIATE
