// Combines the states of a row's spans into the output and, where asked, the log-sum-exp:
//   out = sum_s w_s o_s / sum_s w_s l_s
// where w_s brings the state of span s to the row's largest reference (softmax_state.h); a sink
// joins the sum of l behind all of them (row_finish.h).
// Roundings, each at most u = 2^-24 of the sum of p |v|: 3 in a batch of spans and 2 for each of
// the compensated sums over batches and runs; 5 + 2 + 2 for the sum of weights, 2 for the division.
//
// A threadgroup has SDPA_MERGE_COLUMNS columns of a row. Each of its first simdgroups adds up a run
// of neighbouring spans in order (sdpa_spans.h says how many there are); the runs are then added in
// order.
#include <metal_stdlib>

#include "lanes.h"
#include "row_finish.h"
#include "sdpa_args.h"
#include "sdpa_problem.h"
#include "sdpa_spans.h"
#include "softmax_state.h"
#include "unroll.h"

namespace metal_sdpa {

constant constexpr int kBatchSpans = SDPA_MERGE_BATCH;
constant constexpr int kBatchColumns = SDPA_MERGE_COLUMNS / kLanes;
static_assert(kLanes % kBatchSpans == 0, "a batch has its factors from one set of lanes");

/// States of one row: numerators [n_spans, Dv], from this threadgroup's first column on, reference
/// and sum [n_spans, 2].
struct RowPartials {
  device const float* numerators;
  device const float2* reference_sum;
  int n_spans;
};

/// Neighbouring spans of a row, those of one simdgroup.
struct Run {
  device const float* numerators;  ///< of the first span
  device const float2* reference_sum;
  int count;
};

/// Largest reference; -inf for no span. Every simdgroup finds it for itself.
inline float largest_reference(thread const RowPartials& row, int lane) {
  float largest = -INFINITY;
  for (int s = lane; s < row.n_spans; s += kLanes) {
    largest = metal::max(largest, row.reference_sum[s].x);
  }
  return metal::simd_max(largest);
}

/// Numerators of some spans: a lane has columns lane, lane + 32 and so on. All loads are under way
/// at a time: what merging waits for is memory.
struct Batch {
  float numerators[kBatchSpans][kBatchColumns];

  /// Past the run's last span it is the last one again; 0 where no lane has a column.
  void load(thread const Run& run, int first_span, int lane, int n_columns, int value_dim) {
    SDPA_UNROLL
    for (int c = 0; c < kBatchColumns; ++c) {
      const bool exists = c * kLanes < n_columns;
      const int column = metal::min(c * kLanes + lane, n_columns - 1);
      SDPA_UNROLL
      for (int s = 0; s < kBatchSpans; ++s) {
        const int span = metal::min(first_span + s, run.count - 1);
        numerators[s][c] = exists ? run.numerators[long(span) * value_dim + column] : 0.0f;
      }
    }
  }

  /// Adds the spans, times their factors (lane i has that of span i), to each column's sum. Factors
  /// of whole references are powers of two: only additions round.
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
/// the sum of weights. Returns that reference, the largest of its spans'.
inline float merge_run(thread const RowPartials& row, thread const Run& run, int lane,
                       int n_columns, int value_dim, threadgroup float* sums) {
  Batch batch;
  if (run.count > 0) batch.load(run, 0, lane, n_columns, value_dim);
  const float reference = largest_reference(row, lane);
  float factor = 0.0f;  // of the lane's span among the next kLanes
  float weights = 0.0f;
  float weights_compensation = 0.0f;
  float sum[kBatchColumns];
  float compensation[kBatchColumns];
  SDPA_UNROLL
  for (int c = 0; c < kBatchColumns; ++c) sum[c] = compensation[c] = 0.0f;
  for (int first = 0; first < run.count; first += kBatchSpans) {
    if (first % kLanes == 0) {
      float2 state = float2(-INFINITY, 0.0f);
      if (first + lane < run.count) state = run.reference_sum[first + lane];
      factor = rescale_factor(state.x, reference);
      compensated_add(weights, weights_compensation, sum_of_lanes(state.y * factor));
    }
    if (first > 0) batch.load(run, first, lane, n_columns, value_dim);
    batch.add(first, run.count, factor, sum, compensation);
  }
  if (lane == 0) sums[n_columns] = weights;
  SDPA_UNROLL
  for (int c = 0; c < kBatchColumns; ++c) {
    if (c * kLanes + lane < n_columns) sums[c * kLanes + lane] = sum[c];
  }
  return reference;
}

/// Sum of one element over the runs, `stride` apart in threadgroup memory. All are read at a time;
/// one that has no span is not there.
inline float add_runs(threadgroup const float* first, int n_spans, int run_spans, int stride) {
  float sum = 0.0f;
  float compensation = 0.0f;
  SDPA_UNROLL
  for (int run = 0; run < SDPA_MERGE_RUNS; ++run) {
    const bool exists = run * run_spans < n_spans;
    compensated_add(sum, compensation, exists ? first[run * stride] : 0.0f);
  }
  return sum;
}

/// Sum of one column over the spans where something is infinite or NaN.
inline float special_sum(RowPartials row, float reference, int column, int value_dim) {
  float sum = 0.0f;
  SDPA_ROLLED
  for (int s = 0; s < row.n_spans; ++s) {
    const float factor = rescale_factor(row.reference_sum[s].x, reference);
    sum += weighted(row.numerators[long(s) * value_dim + column], factor);
  }
  return sum;
}

}  // namespace metal_sdpa

/// Threadgroups (B, Hq, rows * ceil(Dv / SDPA_MERGE_COLUMNS)) of sdpa_merge_simdgroups(n_spans)
/// simdgroups; threadgroup memory 0 of SDPA_MERGE_BYTES.
template <typename T>
[[kernel]] void sdpa_merge_spans(
    device T* out [[buffer(SDPA_BUFFER_OUT)]],
    constant SdpaArgs& constant_args [[buffer(SDPA_BUFFER_ARGS)]],
    device float* lse [[buffer(SDPA_BUFFER_LSE), function_constant(write_lse)]],
    device const SdpaWorkItem* work [[buffer(SDPA_BUFFER_WORK), function_constant(work_list)]],
    device const uchar* sinks [[buffer(SDPA_BUFFER_SINKS), function_constant(has_sinks)]],
    device const float* partial_o [[buffer(SDPA_BUFFER_PARTIAL_O)]],
    device const float2* partial_ms [[buffer(SDPA_BUFFER_PARTIAL_MS)]],
    threadgroup float* runs [[threadgroup(0)]],
    uint3 grid_position [[threadgroup_position_in_grid]], uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simd_lane [[thread_index_in_simdgroup]]) {
  using namespace metal_sdpa;
  const SdpaArgs args = constant_args;
  uint3 group = grid_position;
  SdpaWorkItem item = grid_item(args, group);
  if (work_list) item = list_item(work, group);
  const long b = long(item.batch_index);
  const long h = long(args.head_begin) + long(group.y);
  const int value_dim = int(args.value_dim);
  int row_index = int(group.z);
  int first_column = 0;
  if (value_dim > SDPA_MERGE_COLUMNS) {
    const uint blocks = uint(value_dim + SDPA_MERGE_COLUMNS - 1) / SDPA_MERGE_COLUMNS;
    row_index = int(group.z / blocks);
    first_column = int(group.z % blocks) * SDPA_MERGE_COLUMNS;
  }
  const int n_columns = metal::min(value_dim - first_column, SDPA_MERGE_COLUMNS);
  const long i = long(args.row_begin) + long(row_index);
  if (i >= long(row_end_of(args, item.sequence))) return;

  const int lane = int(simd_lane);
  const SdpaBand band = band_of(args, item.sequence, i);
  const long span_keys = long(item.span_len);
  const long first_span = windowed ? sdpa_span_of(band.begin, span_keys) : 0l;
  const bool has_keys = !windowed || band.begin < band.end;
  const long state = state_of(args, item, h, i, first_span);
  RowPartials row;
  row.n_spans = has_keys ? int(sdpa_span_count(band.end, span_keys) - first_span) : 0;
  row.numerators = partial_o + state * value_dim + first_column;
  row.reference_sum = partial_ms + state;

  const int run_spans = sdpa_merge_run_spans(row.n_spans);
  const int begin = int(simdgroup) * run_spans;
  Run run;
  run.count = metal::min(run_spans, metal::max(row.n_spans - begin, 0));
  run.numerators = row.numerators + long(begin) * value_dim;
  run.reference_sum = row.reference_sum + begin;
  const int stride = n_columns + 1;
  threadgroup float* own = runs + int(simdgroup) * stride;
  const float reference = merge_run(row, run, lane, n_columns, value_dim, own);
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);

  const float sum = add_runs(runs + n_columns, row.n_spans, run_spans, stride);
  float sink = -INFINITY;
  if (has_sinks) sink = sink_of(sinks, args, h);
  const RowFinish finish = finish_row(reference, sum, sink);
  device T* out_row = out + query_start(args.out_offset, args.out_stride, b, h, item.sequence) +
                      i * args.out_stride.row + first_column;
  for (int column = int(thread_index); column < n_columns; column += int(threads.x)) {
    float numerator = add_runs(runs + column, row.n_spans, run_spans, stride);
    if (!metal::isfinite(numerator)) numerator = special_sum(row, reference, column, value_dim);
    out_row[column] = T(finished(numerator, finish));
  }
  if (write_lse && thread_index == 0 && first_column == 0) {
    lse[lse_row(args, item.sequence, b, h, i)] = finish.lse;
  }
}

#define SDPA_INSTANTIATE(name, type) \
  template [[host_name(name)]] [[kernel]] decltype(sdpa_merge_spans<type>) sdpa_merge_spans<type>;
SDPA_INSTANTIATE("sdpa_merge", float)
SDPA_INSTANTIATE("sdpa_merge_f16", half)
SDPA_INSTANTIATE("sdpa_merge_bf16", bfloat)
#undef SDPA_INSTANTIATE
