// Merges span states in order: numerators and sum of the output row, rescaled to one maximum.
#include "cpu/sdpa_merge.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/element.h"
#include "cpu/sdpa.h"
#include "cpu/softmax_state.h"
#include "shaders/sdpa_args.h"
#include "shaders/sdpa_params.h"

namespace metal_sdpa::cpu {
namespace {

constexpr float kLn2 = 0.693147180559945309f;

/// Spans of row i that hold a state.
sdpa_i64 row_spans(const SdpaArgs& args, const SdpaSequence& sequence, sdpa_i64 i) {
  const sdpa_i64 keys = sdpa_band(sequence, args.window, i).end;
  return (keys + args.span_len - 1) / args.span_len;
}

/// Partial states of one row: numerators [n_spans, Dv], maximum and sum [n_spans, 2].
struct RowPartials {
  const float* numerators;
  const float* max_sum;
};

using RowState = SoftmaxState<kMaxHeadDim>;  // maxima in log2 units

void merge_row(const RowPartials& partials, sdpa_i64 n_spans, int value_dim, RowState& row) {
  row.reset(value_dim);
  for (sdpa_i64 s = 0; s < n_spans; ++s) {
    row.merge(partials.max_sum[2 * s], partials.max_sum[2 * s + 1],
              partials.numerators + s * value_dim, value_dim, [](float x) { return std::exp2(x); });
  }
}

template <typename T>
void write_row(const RowState& row, T* out, float* lse, int value_dim) {
  const bool empty = row.sum == 0;
  for (int d = 0; d < value_dim; ++d) {
    store(out + d, empty ? 0.0f : row.numerators[d] / row.sum);
  }
  if (lse == nullptr) return;
  *lse =
      empty ? -std::numeric_limits<float>::infinity() : (row.maximum + std::log2(row.sum)) * kLn2;
}

}  // namespace

template <typename T>
void sdpa_merge_kernel(const NativeLaunch& launch, WorkRange work, StopToken& stop) {
  const SdpaArgs& args = launch.value<SdpaArgs>(SDPA_BUFFER_ARGS);
  const GridSize& grid = launch.threadgroups;
  const int value_dim = static_cast<int>(args.value_dim);
  RowState row;
  for (std::uint64_t group = work.begin; group < work.end; ++group) {
    if (stop.stop_requested()) return;
    const sdpa_i64 b = args.batch_begin + static_cast<sdpa_i64>(group % grid.x);
    const sdpa_i64 h = args.head_begin + static_cast<sdpa_i64>(group / grid.x % grid.y);
    const sdpa_i64 tile = static_cast<sdpa_i64>(group / grid.x / grid.y);
    SdpaSequence sequence = args.sequence;
    if (launch.bound(SDPA_BUFFER_SEQUENCES)) {
      sequence = launch.buffer<const SdpaSequence>(SDPA_BUFFER_SEQUENCES)[b];
    }
    const sdpa_i64 first = args.row_begin + tile * SDPA_TILE_Q;
    const sdpa_i64 last = std::min<sdpa_i64>(first + SDPA_TILE_Q, args.row_end);
    for (sdpa_i64 i = first; i < last; ++i) {
      const sdpa_i64 index = (b * args.n_heads + h) * args.seq_len + i;
      const RowPartials partials{
          launch.buffer<const float>(SDPA_BUFFER_PARTIAL_O) + index * args.n_spans * value_dim,
          launch.buffer<const float>(SDPA_BUFFER_PARTIAL_MS) + index * args.n_spans * 2};
      merge_row(partials, row_spans(args, sequence, i), value_dim, row);
      T* out = launch.buffer<T>(SDPA_BUFFER_OUT) + args.out_offset + b * args.out_stride.batch +
               h * args.out_stride.head + i * args.out_stride.row;
      float* lse =
          launch.bound(SDPA_BUFFER_LSE) ? launch.buffer<float>(SDPA_BUFFER_LSE) + index : nullptr;
      write_row(row, out, lse, value_dim);
    }
  }
}

template void sdpa_merge_kernel<float>(const NativeLaunch&, WorkRange, StopToken&);
template void sdpa_merge_kernel<F16>(const NativeLaunch&, WorkRange, StopToken&);
template void sdpa_merge_kernel<BF16>(const NativeLaunch&, WorkRange, StopToken&);

}  // namespace metal_sdpa::cpu
