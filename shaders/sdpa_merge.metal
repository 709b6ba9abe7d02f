// Combines the states of a row's spans into the output and, where asked, the log-sum-exp:
//   out = sum_s exp2(m_s - m) o_s / sum_s exp2(m_s - m) l_s,  m = max_s m_s
// A threadgroup has a row. Each of its simdgroups adds up a run of neighbouring spans in order;
// the runs are then added in order.
#include <metal_stdlib>

#include "sdpa_args.h"
#include "sdpa_problem.h"
#include "sdpa_spans.h"
#include "softmax_state.h"
#include "unroll.h"

namespace metal_sdpa {

constant constexpr int kRuns = 8;
constant constexpr int kLanes = 32;
constant constexpr int kBatchSpans = 8;
constant constexpr int kBatchColumns = 4;
static_assert(SDPA_MAX_SPANS <= kRuns * kLanes, "a lane holds the factor of one span of a run");

/// States of one row: numerators [n_spans, Dv], maximum and sum [n_spans, 2].
struct RowPartials {
  device const float* numerators;
  device const float2* max_sum;
  int n_spans;
};

/// Neighbouring spans of a row, those of one simdgroup.
struct Run {
  device const float* numerators;  ///< of the first span
  device const float2* max_sum;
  int count;
};

/// Largest maximum; -inf for no span. Every simdgroup finds it for itself.
inline float largest_maximum(thread const RowPartials& row, int lane) {
  float maximum = -INFINITY;
  for (int s = lane; s < row.n_spans; s += kLanes) {
    maximum = metal::max(maximum, row.max_sum[s].x);
  }
  return metal::simd_max(maximum);
}

/// Sum over the lanes, in one order.
inline float sum_of_lanes(float value) {
  for (ushort mask = 1; mask < kLanes; mask *= 2) value += metal::simd_shuffle_xor(value, mask);
  return value;
}

/// Numerators of some spans and columns: a lane has columns lane, lane + 32 and so on. All loads
/// are under way at a time: what merging waits for is memory.
struct Batch {
  float numerators[kBatchSpans][kBatchColumns];

  /// Past the run's last span it is the last one again; 0 where no lane has a column.
  void load(thread const Run& run, int first_span, int first_column, int lane, int value_dim) {
    SDPA_UNROLL
    for (int c = 0; c < kBatchColumns; ++c) {
      const bool exists = first_column + c * kLanes < value_dim;
      const int column = metal::min(first_column + c * kLanes + lane, value_dim - 1);
      SDPA_UNROLL
      for (int s = 0; s < kBatchSpans; ++s) {
        const int span = metal::min(first_span + s, run.count - 1);
        numerators[s][c] = exists ? run.numerators[long(span) * value_dim + column] : 0.0f;
      }
    }
  }

  /// Adds the spans, times their factors (lane i has that of span i), to each column's sum. Factors
  /// are powers of two: only additions round.
  void add(int first_span, int count, float factor, thread float* sum,
           thread float* compensation) const {
    float total[kBatchColumns];
    SDPA_UNROLL
    for (int c = 0; c < kBatchColumns; ++c) total[c] = 0.0f;
    SDPA_UNROLL
    for (int s = 0; s < kBatchSpans; ++s) {
      const float own = metal::simd_shuffle(factor, ushort((first_span + s) % kLanes));
      if (first_span + s >= count) continue;
      SDPA_UNROLL
      for (int c = 0; c < kBatchColumns; ++c) total[c] += numerators[s][c] * own;
    }
    SDPA_UNROLL
    for (int c = 0; c < kBatchColumns; ++c) compensated_add(sum[c], compensation[c], total[c]);
  }
};

/// What a simdgroup leaves for the others: its run's numerators at the row's reference, behind them
/// the sum of weights. Returns the row's largest maximum.
inline float merge_run(thread const RowPartials& row, thread const Run& run, int lane,
                       int value_dim, threadgroup float* sums) {
  Batch batch;
  if (run.count > 0) batch.load(run, 0, 0, lane, value_dim);
  const float maximum = largest_maximum(row, lane);
  float factor = 0.0f;
  float weights = 0.0f;
  if (lane < run.count) {
    const float2 state = run.max_sum[lane];
    factor = metal::exp2(state.x - subtrahend(maximum));
    weights = state.y * factor;
  }
  weights = sum_of_lanes(weights);
  if (lane == 0) sums[value_dim] = weights;
  for (int column = 0; column < value_dim; column += kBatchColumns * kLanes) {
    float sum[kBatchColumns];
    float compensation[kBatchColumns];
    SDPA_UNROLL
    for (int c = 0; c < kBatchColumns; ++c) sum[c] = compensation[c] = 0.0f;
    for (int first = 0; first < run.count; first += kBatchSpans) {
      if (column + first > 0) batch.load(run, first, column, lane, value_dim);
      batch.add(first, run.count, factor, sum, compensation);
    }
    SDPA_UNROLL
    for (int c = 0; c < kBatchColumns; ++c) {
      const int d = column + c * kLanes + lane;
      if (d < value_dim) sums[d] = sum[c];
    }
  }
  return maximum;
}

/// Sum of one element over the runs, `stride` apart in threadgroup memory.
inline float add_runs(threadgroup const float* first, int stride) {
  float sum = 0.0f;
  float compensation = 0.0f;
  for (int run = 0; run < kRuns; ++run) compensated_add(sum, compensation, first[run * stride]);
  return sum;
}

}  // namespace metal_sdpa

/// Threadgroups (B, Hq, rows) of 256 threads; threadgroup memory 0 of 32 * (Dv + 1) bytes.
template <typename T>
[[kernel]] void sdpa_merge_spans(device T* out [[buffer(SDPA_BUFFER_OUT)]],
                                 constant SdpaArgs& constant_args [[buffer(SDPA_BUFFER_ARGS)]],
                                 device float* lse
                                 [[buffer(SDPA_BUFFER_LSE), function_constant(write_lse)]],
                                 device const SdpaSequence* sequences
                                 [[buffer(SDPA_BUFFER_SEQUENCES), function_constant(per_sequence)]],
                                 device const float* partial_o [[buffer(SDPA_BUFFER_PARTIAL_O)]],
                                 device const float2* partial_ms [[buffer(SDPA_BUFFER_PARTIAL_MS)]],
                                 threadgroup float* runs [[threadgroup(0)]],
                                 uint3 group [[threadgroup_position_in_grid]],
                                 uint thread_index [[thread_index_in_threadgroup]],
                                 uint simdgroup [[simdgroup_index_in_threadgroup]],
                                 uint simd_lane [[thread_index_in_simdgroup]]) {
  using namespace metal_sdpa;
  const SdpaArgs args = constant_args;
  const long b = long(args.batch_begin) + long(group.x);
  const long h = long(args.head_begin) + long(group.y);
  const long i = long(args.row_begin) + long(group.z);
  SdpaSequence sequence;
  sequence.q_start = args.q_start;
  sequence.kv_len = args.kv_len;
  if (per_sequence) sequence = sequences[b];

  const int value_dim = int(args.value_dim);
  const int lane = int(simd_lane);
  const long index = packed_row(args, b, h, i);
  const long span_keys = sdpa_span_keys(args.span_len, sequence.kv_len);
  RowPartials row;
  row.n_spans = int(sdpa_span_count(visible_keys(args, sequence, i), span_keys));
  row.numerators = partial_o + index * long(args.n_spans) * value_dim;
  row.max_sum = partial_ms + index * long(args.n_spans);

  const int run_spans = (row.n_spans + kRuns - 1) / kRuns;
  const int begin = int(simdgroup) * run_spans;
  Run run;
  run.count = metal::min(run_spans, metal::max(row.n_spans - begin, 0));
  run.numerators = row.numerators + long(begin) * value_dim;
  run.max_sum = row.max_sum + begin;
  const int stride = value_dim + 1;
  threadgroup float* own = runs + int(simdgroup) * stride;
  const float maximum = merge_run(row, run, lane, value_dim, own);
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);

  const float sum = add_runs(runs + value_dim, stride);
  const float inverse = inverse_of_sum(sum);
  device T* out_row =
      out + head_start(args.out_offset, args.out_stride, b, h) + i * args.out_stride.row;
  for (int d = int(thread_index); d < value_dim; d += kRuns * kLanes) {
    out_row[d] = T(add_runs(runs + d, stride) * inverse);
  }
  if (write_lse && thread_index == 0) lse[index] = log_sum_exp(maximum, sum);
}

#define SDPA_INSTANTIATE(name, type) \
  template [[host_name(name)]] [[kernel]] decltype(sdpa_merge_spans<type>) sdpa_merge_spans<type>;
SDPA_INSTANTIATE("sdpa_merge", float)
SDPA_INSTANTIATE("sdpa_merge_f16", half)
SDPA_INSTANTIATE("sdpa_merge_bf16", bfloat)
#undef SDPA_INSTANTIATE
