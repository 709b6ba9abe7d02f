// Combines the states of a row's spans into the output and, where asked, the log-sum-exp:
//   out = sum_s exp2(m_s - m) o_s / sum_s exp2(m_s - m) l_s,  m = max_s m_s
// A threadgroup has a row. Each of its simdgroups adds up a run of neighbouring spans in order;
// the runs are then added in order.
#include <metal_stdlib>

#include "sdpa_args.h"
#include "sdpa_problem.h"
#include "sdpa_spans.h"
#include "softmax_state.h"

namespace metal_sdpa {

constant constexpr int kRuns = 8;
constant constexpr int kLanes = 32;
constant constexpr int kColumns = 4;
constant constexpr int kBatch = 4;

/// States of one row: numerators [n_spans, Dv], maximum and sum [n_spans, 2].
struct RowPartials {
  device const float* numerators;
  device const float2* max_sum;
  int n_spans;
};

/// Largest maximum; -inf for no span. Every simdgroup finds it for itself.
inline float largest_maximum(thread const RowPartials& row, int lane) {
  float maximum = -INFINITY;
  for (int s = lane; s < row.n_spans; s += kLanes) {
    maximum = metal::max(maximum, row.max_sum[s].x);
  }
  return metal::simd_max(maximum);
}

/// Sum of weights of spans begin .. end - 1 at the reference.
inline float run_sum(thread const RowPartials& row, int begin, int end, float reference) {
  float sum = 0.0f;
  float compensation = 0.0f;
  for (int s = begin; s < end; ++s) {
    const float2 state = row.max_sum[s];
    compensated_add(sum, compensation, state.y * metal::exp2(state.x - reference));
  }
  return sum;
}

/// Numerators d, d + 32, d + 64, d + 96 (those below Dv) of spans begin .. end - 1 at the
/// reference. Loads of kBatch spans are under way at a time.
inline void run_numerators(thread const RowPartials& row, int begin, int end, float reference,
                           int d, int value_dim, threadgroup float* sums) {
  float sum[kColumns];
  float compensation[kColumns];
  for (int c = 0; c < kColumns; ++c) sum[c] = compensation[c] = 0.0f;
  for (int first = begin; first < end; first += kBatch) {
    float factor[kBatch];
    float numerator[kBatch][kColumns];
    for (int s = 0; s < kBatch; ++s) {
      const int span = metal::min(first + s, end - 1);
      const float maximum = row.max_sum[span].x;
      factor[s] = first + s < end ? metal::exp2(maximum - reference) : 0.0f;
      device const float* source = row.numerators + long(span) * value_dim;
      for (int c = 0; c < kColumns; ++c) {
        numerator[s][c] = source[metal::min(d + c * kLanes, value_dim - 1)];
      }
    }
    for (int s = 0; s < kBatch; ++s) {
      if (first + s >= end) break;
      for (int c = 0; c < kColumns; ++c) {
        compensated_add(sum[c], compensation[c], numerator[s][c] * factor[s]);
      }
    }
  }
  for (int c = 0; c < kColumns; ++c) {
    if (d + c * kLanes < value_dim) sums[d + c * kLanes] = sum[c];
  }
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
[[kernel]] void sdpa_merge_spans(
    device T* out [[buffer(SDPA_BUFFER_OUT)]],
    constant SdpaArgs& constant_args [[buffer(SDPA_BUFFER_ARGS)]],
    device float* lse [[buffer(SDPA_BUFFER_LSE), function_constant(write_lse)]],
    device const SdpaSequence* sequences
    [[buffer(SDPA_BUFFER_SEQUENCES), function_constant(per_sequence)]],
    device const float* partial_o [[buffer(SDPA_BUFFER_PARTIAL_O)]],
    device const float2* partial_ms [[buffer(SDPA_BUFFER_PARTIAL_MS)]],
    threadgroup float* runs [[threadgroup(0)]], uint3 group [[threadgroup_position_in_grid]],
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

  const float maximum = largest_maximum(row, lane);
  const float reference = subtrahend(maximum);
  const int run_spans = (row.n_spans + kRuns - 1) / kRuns;
  const int run = int(simdgroup);
  const int begin = metal::min(run * run_spans, row.n_spans);
  const int end = metal::min(begin + run_spans, row.n_spans);
  const int stride = value_dim + 1;
  threadgroup float* own = runs + run * stride;
  for (int d = lane; d < value_dim; d += kColumns * kLanes) {
    run_numerators(row, begin, end, reference, d, value_dim, own);
  }
  if (lane == 0) own[value_dim] = run_sum(row, begin, end, reference);
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
