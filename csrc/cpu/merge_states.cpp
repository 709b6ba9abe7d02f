// States of one row, added up in order at the largest of their log-sum-exps.
#include "cpu/merge_states.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/element.h"
#include "cpu/sdpa.h"
#include "cpu/softmax_state.h"
#include "shaders/merge_states_args.h"

namespace metal_sdpa::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::uint64_t kRowsToLook = 64;  // between two looks at the stop token

/// One row of every state.
template <typename In>
struct RowStates {
  const In* outs;
  const float* lses;
  sdpa_i64 outs_stride;
  sdpa_i64 lses_stride;
  sdpa_i64 count;

  const In* out(sdpa_i64 i) const { return outs + i * outs_stride; }
  float lse(sdpa_i64 i) const { return lses[i * lses_stride]; }
};

/// NaN where one of them is.
template <typename In>
float largest_lse(const RowStates<In>& row) {
  float largest = -kInfinity;
  for (sdpa_i64 i = 0; i < row.count; ++i) {
    const float lse = row.lse(i);
    if (std::isnan(lse)) return lse;
    if (lse > largest) largest = lse;
  }
  return largest;
}

/// What the states of a row add up to: weights at the largest log-sum-exp, and values by their
/// shares, whose sum is a mean and never out of range.
struct Merged {
  float sum = 0;
  float values[kMaxHeadDim];
};

template <typename In>
float sum_of_weights(const RowStates<In>& row, float largest) {
  float sum = 0;
  float compensation = 0;
  for (sdpa_i64 i = 0; i < row.count; ++i) {
    const float lse = row.lse(i);
    if (lse != -kInfinity) add_compensated(sum, compensation, std::exp(lse - largest));
  }
  return sum;
}

/// An infinite value stays infinite where the weight is too small for a float.
float weighted(float value, float weight) { return std::isfinite(value) ? value * weight : value; }

template <typename In>
void merge_row(const RowStates<In>& row, float largest, int width, Merged& merged) {
  float compensations[kMaxHeadDim];
  merged.sum = sum_of_weights(row, largest);
  std::fill(merged.values, merged.values + width, 0.0f);
  std::fill(compensations, compensations + width, 0.0f);
  for (sdpa_i64 i = 0; i < row.count; ++i) {
    const float lse = row.lse(i);
    if (lse == -kInfinity) continue;
    const float share = std::exp(lse - largest) / merged.sum;
    const In* out = row.out(i);
    for (int d = 0; d < width; ++d) {
      add_compensated(merged.values[d], compensations[d], weighted(load(out + d), share));
    }
  }
}

template <typename Out>
void write_row(const Merged& merged, float largest, int width, Out* out, float* lse) {
  const bool is_empty = merged.sum == 0;
  for (int d = 0; d < width; ++d) store(out + d, is_empty ? 0 : merged.values[d]);
  *lse = is_empty ? -kInfinity : largest + std::log(merged.sum);
}

template <typename T>
T* at(T* data, sdpa_i64 offset, const SdpaStrides& stride, sdpa_i64 b, sdpa_i64 h, sdpa_i64 i) {
  return data + offset + b * stride.batch + h * stride.head + i * stride.row;
}

SdpaStrides within_state(const MergeStateStrides& stride) {
  return {stride.batch, stride.head, stride.row};
}

}  // namespace

template <typename In, typename Out>
void merge_states_kernel(const NativeLaunch& launch, WorkRange work, StopToken& stop) {
  const MergeArgs& args = launch.value<MergeArgs>(SDPA_STATES_BUFFER_ARGS);
  const GridSize& grid = launch.threadgroups;
  const int width = static_cast<int>(args.width);
  Merged merged;
  for (std::uint64_t group = work.begin; group < work.end; ++group) {
    if ((group - work.begin) % kRowsToLook == 0 && stop.stop_requested()) return;
    const auto b = static_cast<sdpa_i64>(group % grid.x);
    const auto h = static_cast<sdpa_i64>(group / grid.x % grid.y);
    const auto i = static_cast<sdpa_i64>(group / grid.x / grid.y);
    const RowStates<In> row{at(launch.buffer<const In>(SDPA_STATES_BUFFER_OUTS), args.outs_offset,
                               within_state(args.outs_stride), b, h, i),
                            at(launch.buffer<const float>(SDPA_STATES_BUFFER_LSES),
                               args.lses_offset, within_state(args.lses_stride), b, h, i),
                            args.outs_stride.state, args.lses_stride.state, args.n_states};
    const float largest = largest_lse(row);
    merge_row(row, largest, width, merged);
    write_row(
        merged, largest, width,
        at(launch.buffer<Out>(SDPA_STATES_BUFFER_OUT), args.out_offset, args.out_stride, b, h, i),
        at(launch.buffer<float>(SDPA_STATES_BUFFER_LSE), args.lse_offset, args.lse_stride, b, h,
           i));
  }
}

template void merge_states_kernel<float, float>(const NativeLaunch&, WorkRange, StopToken&);
template void merge_states_kernel<float, F16>(const NativeLaunch&, WorkRange, StopToken&);
template void merge_states_kernel<float, BF16>(const NativeLaunch&, WorkRange, StopToken&);
template void merge_states_kernel<F16, float>(const NativeLaunch&, WorkRange, StopToken&);
template void merge_states_kernel<F16, F16>(const NativeLaunch&, WorkRange, StopToken&);
template void merge_states_kernel<F16, BF16>(const NativeLaunch&, WorkRange, StopToken&);
template void merge_states_kernel<BF16, float>(const NativeLaunch&, WorkRange, StopToken&);
template void merge_states_kernel<BF16, F16>(const NativeLaunch&, WorkRange, StopToken&);
template void merge_states_kernel<BF16, BF16>(const NativeLaunch&, WorkRange, StopToken&);

}  // namespace metal_sdpa::cpu
