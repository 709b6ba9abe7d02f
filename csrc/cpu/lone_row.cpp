#include "cpu/lone_row.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/element.h"
#include "cpu/key_place.h"
#include "cpu/sdpa.h"

namespace metal_sdpa::cpu {
namespace {

constexpr int kDotLanes = 8;
constexpr std::int64_t kKeysToLook = 256;  // between two looks at the stop token
constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <typename T>
class Attention {
 public:
  Attention(const NativeLaunch& launch, const SdpaArgs& args, const RowPlace& row, StopToken& stop)
      : args_(args), rule_(launch, args, row), sink_(sink_of(launch, args, row.h)), stop_(stop) {
    const sdpa_i64 kv_h = row.h / (args.n_heads / args.n_kv_heads);
    const SdpaSequence sequence = sequence_of(launch, args, row.b);
    const T* q = launch.buffer<const T>(SDPA_BUFFER_Q) + args.q_offset +
                 row.b * args.q_stride.batch + row.h * args.q_stride.head +
                 (sequence.q_row + row.i) * args.q_stride.row;
    k_ = launch.buffer<const T>(SDPA_BUFFER_K);
    v_ = launch.buffer<const T>(SDPA_BUFFER_V);
    keys_ = key_place(launch, args, sequence, args.k_offset, args.k_stride, row.b, kv_h);
    values_at_ = key_place(launch, args, sequence, args.v_offset, args.v_stride, row.b, kv_h);
    for (sdpa_u32 d = 0; d < args.head_dim; ++d) {
      q_[d] = static_cast<double>(load(q + d)) * static_cast<double>(args.scale);
    }
  }

  bool run(float* out, float& lse) {
    double maximum = sink_;
    if (!find_maximum(maximum)) return false;
    std::fill(values_, values_ + args_.value_dim, 0.0);
    double sum = sink_ == -kInfinity ? 0 : std::exp(sink_ - maximum);
    if (maximum != -kInfinity && !add_keys(maximum, sum)) return false;
    for (sdpa_u32 d = 0; d < args_.value_dim; ++d) {
      out[d] = sum == 0 ? 0.0f : static_cast<float>(values_[d] / sum);
    }
    lse = static_cast<float>(sum == 0 ? -kInfinity : maximum + std::log(sum));
    return true;
  }

 private:
  bool has_to_stop(sdpa_i64 j) { return j % kKeysToLook == 0 && stop_.stop_requested(); }

  static double larger_or_nan(double a, double b) { return b > a || std::isnan(b) ? b : a; }

  bool find_maximum(double& maximum) {
    for (sdpa_i64 j = rule_.band().begin; j < rule_.band().end; ++j) {
      if (has_to_stop(j)) return false;
      if (!rule_.hides(j)) maximum = larger_or_nan(maximum, score(j));
    }
    return true;
  }

  bool add_keys(double maximum, double& sum) {
    for (sdpa_i64 j = rule_.band().begin; j < rule_.band().end; ++j) {
      if (has_to_stop(j)) return false;
      if (rule_.hides(j)) continue;
      const double x = score(j);
      if (x == -kInfinity) continue;
      const double weight = std::exp(x - maximum);
      sum += weight;
      const T* v = v_ + row_start(values_at_, j);
      for (sdpa_u32 d = 0; d < args_.value_dim; ++d) values_[d] += weight * load(v + d);
    }
    return true;
  }

  double score(sdpa_i64 j) const {
    const T* k = k_ + row_start(keys_, j);
    const auto head_dim = static_cast<sdpa_i64>(args_.head_dim);
    double lanes[kDotLanes] = {};
    sdpa_i64 d = 0;
    for (; d + kDotLanes <= head_dim; d += kDotLanes) {
      for (int i = 0; i < kDotLanes; ++i) lanes[i] += q_[d + i] * load(k + d + i);
    }
    for (int i = 0; d + i < head_dim; ++i) lanes[i] += q_[d + i] * load(k + d + i);
    double sum = 0;
    for (const double lane : lanes) sum += lane;
    return rule_.score(sum, j);
  }

  const SdpaArgs& args_;
  const ScoreRow<double> rule_;
  const double sink_;
  StopToken& stop_;
  const T* k_;
  const T* v_;
  KeyPlace keys_;
  KeyPlace values_at_;
  double q_[kMaxHeadDim];  ///< times scale
  double values_[kMaxHeadDim];
};

}  // namespace

float head_sink(const NativeLaunch& launch, const SdpaArgs& args, sdpa_i64 h) noexcept {
  return sink_of(launch, args, h);
}

bool attend_lone_row(const NativeLaunch& launch, const SdpaArgs& args, ElementKind kind,
                     const RowPlace& row, StopToken& stop, float* out, float& lse) {
  switch (kind) {
    case ElementKind::f16:
      return Attention<F16>(launch, args, row, stop).run(out, lse);
    case ElementKind::bf16:
      return Attention<BF16>(launch, args, row, stop).run(out, lse);
    case ElementKind::f32:
      break;
  }
  return Attention<float>(launch, args, row, stop).run(out, lse);
}

}  // namespace metal_sdpa::cpu
