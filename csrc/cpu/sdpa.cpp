// The straightforward kernel, one query row at a time:
//   s_j = scale * (q . k_j), and what else happens to a score, for every visible key j
//   out = sum_j exp(s_j - m) v_j / sum_j exp(s_j - m),  m = max_j s_j
// Keys are taken in spans; each span gives a state (maximum, sum, numerators), and the states are
// merged in order. Sums are short: 32 keys from zero, then one compensated addition.
#include "cpu/sdpa.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/element.h"
#include "cpu/key_place.h"
#include "cpu/lone_row.h"
#include "cpu/row_end.h"
#include "cpu/sdpa_packed.h"
#include "cpu/softmax_state.h"
#include "shaders/sdpa_args.h"
#include "shaders/sdpa_params.h"

namespace metal_sdpa::cpu {
namespace {

constexpr int kTileKeys = 32;
constexpr int kDotLanes = 16;
constexpr int kDotBlock = 256;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// q . k of at most kDotBlock elements in kDotLanes partial sums, added as a tree.
template <typename T>
float dot_block(const float* q, const T* k, int head_dim) {
  float lanes[kDotLanes] = {};
  int d = 0;
  for (; d + kDotLanes <= head_dim; d += kDotLanes) {
    for (int lane = 0; lane < kDotLanes; ++lane) lanes[lane] += q[d + lane] * load(k + d + lane);
  }
  for (int lane = 0; d + lane < head_dim; ++lane) lanes[lane] += q[d + lane] * load(k + d + lane);
  for (int half = kDotLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

/// q . k in short chains of additions, which keep the rounding error small.
template <typename T>
float dot(const float* q, const T* k, int head_dim) {
  float sum = 0;
  for (int d = 0; d < head_dim; d += kDotBlock) {
    sum += dot_block(q + d, k + d, std::min(kDotBlock, head_dim - d));
  }
  return sum;
}

using RowState = SoftmaxState<kMaxHeadDim>;

/// One sequence's K and V under one KV head.
template <typename T>
struct KeyValues {
  const T* k;
  const T* v;
  KeyPlace keys;
  KeyPlace values;
};

/// The state of keys begin..end, at most kStraightSpan of them, for query row `q`. A key that is
/// hidden or whose score is -inf is not looked at again.
template <typename T>
void attend_span(const float* q, const KeyValues<T>& kv, const ScoreRow<float>& rule,
                 sdpa_i64 begin, sdpa_i64 end, const SdpaArgs& args, RowState& span) {
  const int n_keys = static_cast<int>(end - begin);
  const int value_dim = static_cast<int>(args.value_dim);
  float scores[kStraightSpan];
  span.reset(value_dim);

  // pass 1: scores and their maximum (a NaN score does not move the maximum)
  for (int j = 0; j < n_keys; ++j) {
    scores[j] = -kInfinity;
    if (rule.hides(begin + j)) continue;
    const T* k = kv.k + row_start(kv.keys, begin + j);
    scores[j] = rule.score(args.scale * dot(q, k, static_cast<int>(args.head_dim)), begin + j);
    if (scores[j] > span.maximum) span.maximum = scores[j];
  }

  // pass 2: weights, their sum, and the weighted values, a tile at a time
  const float reference = softmax_reference(span.maximum);
  for (int tile = 0; tile < n_keys; tile += kTileKeys) {
    const int tile_end = std::min(tile + kTileKeys, n_keys);
    float weight_sum = 0;
    float values[kMaxHeadDim];
    std::fill(values, values + value_dim, 0.0f);
    for (int j = tile; j < tile_end; ++j) {
      if (scores[j] == -kInfinity) continue;
      const float weight = std::exp(scores[j] - reference);
      const T* v = kv.v + row_start(kv.values, begin + j);
      weight_sum += weight;
      for (int d = 0; d < value_dim; ++d) values[d] += weight * load(v + d);
    }
    span.add(weight_sum, values, 1.0f, value_dim);
  }
}

template <typename T>
constexpr ElementKind kKindOf = ElementKind::f32;
template <>
constexpr ElementKind kKindOf<F16> = ElementKind::f16;
template <>
constexpr ElementKind kKindOf<BF16> = ElementKind::bf16;

/// Output of a row in f32, in place of the numerators; returns its log-sum-exp. A row without any
/// weight (no visible key) is 0, its log-sum-exp -inf or its sink.
float finish_row(RowState& row, float sink, int value_dim) {
  const bool empty = row.sum == 0;
  if (sink != -kInfinity && !empty) {
    const RowEnd end = end_with_sink(row.maximum, row.sum, sink);
    for (int d = 0; d < value_dim; ++d) {
      row.numerators[d] = static_cast<float>(row.numerators[d] / end.divisor);
    }
    return end.lse;
  }
  for (int d = 0; d < value_dim; ++d) {
    row.numerators[d] = empty ? 0.0f : row.numerators[d] / row.sum;
  }
  return empty ? sink : row.maximum + std::log(row.sum);
}

bool all_finite(const float* values, int n) {
  return std::all_of(values, values + n, [](float value) { return std::isfinite(value); });
}

/// Rows and tensors of one (batch, head).
template <typename T>
class HeadRows {
 public:
  HeadRows(const NativeLaunch& launch, const SdpaArgs& args, sdpa_i64 b, sdpa_i64 h)
      : launch_(launch), args_(args), b_(b), h_(h), sink_(sink_of(launch, args, h)) {
    const sdpa_i64 kv_h = h / (args.n_heads / args.n_kv_heads);
    const SdpaSequence sequence = sequence_of(launch, args, b);
    n_rows_ = written_rows(args, sequence);
    q_ = launch.buffer<const T>(SDPA_BUFFER_Q) + at(args.q_offset, args.q_stride, sequence, b, h);
    out_ = at(args.out_offset, args.out_stride, sequence, b, h);
    kv_.k = launch.buffer<const T>(SDPA_BUFFER_K);
    kv_.v = launch.buffer<const T>(SDPA_BUFFER_V);
    kv_.keys = key_place(launch, args, sequence, args.k_offset, args.k_stride, b, kv_h);
    kv_.values = key_place(launch, args, sequence, args.v_offset, args.v_stride, b, kv_h);
    if (launch.bound(SDPA_BUFFER_LSE)) {
      lse_ = launch.buffer<float>(SDPA_BUFFER_LSE) + b * args.lse_batch + h * args.lse_head +
             sequence.q_row;
    }
  }

  /// Rows that are to be written.
  sdpa_i64 count() const { return n_rows_; }

  /// Attends row i; false when asked to stop, with nothing written.
  bool attend(sdpa_i64 i, RowState& total, RowState& span, StopToken& stop) const {
    const int value_dim = static_cast<int>(args_.value_dim);
    const ScoreRow<float> rule(launch_, args_, {b_, h_, i});
    float q[kMaxHeadDim];
    for (int d = 0; d < static_cast<int>(args_.head_dim); ++d) {
      q[d] = load(q_ + i * args_.q_stride.row + d);
    }
    total.reset(value_dim);
    const SdpaBand& band = rule.band();
    for (sdpa_i64 begin = band.begin; begin < band.end;) {
      if (stop.stop_requested()) return false;
      const sdpa_i64 end =
          std::min<sdpa_i64>((begin / args_.span_len + 1) * args_.span_len, band.end);
      attend_span(q, kv_, rule, begin, end, args_, span);
      total.merge(span.maximum, span.sum, span.numerators, value_dim,
                  [](float x) { return std::exp(x); });
      begin = end;
    }
    const bool is_lone = needs_lone_row(
        {total.maximum, total.sum, all_finite(total.numerators, value_dim), band.begin < band.end});
    float lse = 0;
    if (!is_lone) {
      lse = finish_row(total, sink_, value_dim);
    } else if (!attend_lone_row(launch_, args_, kKindOf<T>, {b_, h_, i}, stop, total.numerators,
                                lse)) {
      return false;
    }
    const sdpa_i64 out = out_ + i * args_.out_stride.row;
    if (args_.out_f32 != 0) {
      store_row(total.numerators, launch_.buffer<float>(SDPA_BUFFER_OUT) + out, value_dim);
    } else {
      store_row(total.numerators, launch_.buffer<T>(SDPA_BUFFER_OUT) + out, value_dim);
    }
    if (lse_ != nullptr) lse_[i] = lse;
    return true;
  }

 private:
  static sdpa_i64 at(sdpa_i64 offset, const SdpaStrides& stride, const SdpaSequence& sequence,
                     sdpa_i64 b, sdpa_i64 h) {
    return offset + b * stride.batch + h * stride.head + sequence.q_row * stride.row;
  }

  template <typename Out>
  static void store_row(const float* values, Out* out, int value_dim) {
    for (int d = 0; d < value_dim; ++d) store(out + d, values[d]);
  }

  const NativeLaunch& launch_;
  const SdpaArgs& args_;
  sdpa_i64 b_;
  sdpa_i64 h_;
  float sink_;
  sdpa_i64 n_rows_;
  sdpa_i64 out_;  ///< of row 0, in elements
  const T* q_;
  KeyValues<T> kv_;
  float* lse_ = nullptr;
};

}  // namespace

template <typename T>
void sdpa_kernel(const NativeLaunch& launch, WorkRange work, StopToken& stop) {
  const SdpaArgs args = launch_args(launch, sizeof(T));
  const GridSize& grid = launch.threadgroups;
  RowState total;
  RowState span;
  for (std::uint64_t group = work.begin; group < work.end; ++group) {
    const sdpa_i64 b = args.batch_begin + static_cast<sdpa_i64>(group % grid.x);
    const sdpa_i64 h = args.head_begin + static_cast<sdpa_i64>(group / grid.x % grid.y);
    const sdpa_i64 tile = static_cast<sdpa_i64>(group / grid.x / grid.y);
    const HeadRows<T> rows(launch, args, b, h);
    const sdpa_i64 first = args.row_begin + tile * SDPA_TILE_Q;
    const sdpa_i64 end = std::min<sdpa_i64>(args.row_end, rows.count());
    const sdpa_i64 last = std::min<sdpa_i64>(first + SDPA_TILE_Q, end);
    for (sdpa_i64 i = first; i < last; ++i) {
      if (!rows.attend(i, total, span, stop)) return;
    }
  }
}

template void sdpa_kernel<float>(const NativeLaunch&, WorkRange, StopToken&);
template void sdpa_kernel<F16>(const NativeLaunch&, WorkRange, StopToken&);
template void sdpa_kernel<BF16>(const NativeLaunch&, WorkRange, StopToken&);

}  // namespace metal_sdpa::cpu
