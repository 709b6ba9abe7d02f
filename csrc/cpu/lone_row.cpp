#include "cpu/lone_row.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/element.h"
#include "cpu/sdpa.h"

namespace metal_sdpa::cpu {
namespace {

constexpr int kDotLanes = 8;
constexpr std::int64_t kKeysToLook = 256;  // between two looks at the stop token
constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <typename T>
class Attention {
 public:
  Attention(const LoneRow& row, StopToken& stop) : row_(row), stop_(stop) {
    for (std::int64_t d = 0; d < row.head_dim; ++d) {
      q_[d] = static_cast<double>(load(static_cast<const T*>(row.q) + d)) * row.scale;
    }
  }

  bool run(float* out, float& lse) {
    double maximum = -kInfinity;
    for (std::int64_t j = 0; j < row_.n_keys; ++j) {
      if (has_to_stop(j)) return false;
      maximum = larger_or_nan(maximum, score(j));
    }
    std::fill(values_, values_ + row_.value_dim, 0.0);
    double sum = 0;
    for (std::int64_t j = 0; j < row_.n_keys && maximum != -kInfinity; ++j) {
      if (has_to_stop(j)) return false;
      const double x = score(j);
      if (x == -kInfinity) continue;
      const double weight = std::exp(x - maximum);
      sum += weight;
      add_values(j, weight);
    }
    for (std::int64_t d = 0; d < row_.value_dim; ++d) {
      out[d] = sum == 0 ? 0.0f : static_cast<float>(values_[d] / sum);
    }
    lse = static_cast<float>(sum == 0 ? -kInfinity : maximum + std::log(sum));
    return true;
  }

 private:
  bool has_to_stop(std::int64_t j) { return j % kKeysToLook == 0 && stop_.stop_requested(); }

  static double larger_or_nan(double a, double b) { return b > a || std::isnan(b) ? b : a; }

  double score(std::int64_t j) const {
    const T* k = static_cast<const T*>(row_.k) + j * row_.k_stride;
    double lanes[kDotLanes] = {};
    std::int64_t d = 0;
    for (; d + kDotLanes <= row_.head_dim; d += kDotLanes) {
      for (int i = 0; i < kDotLanes; ++i) lanes[i] += q_[d + i] * load(k + d + i);
    }
    for (int i = 0; d + i < row_.head_dim; ++i) lanes[i] += q_[d + i] * load(k + d + i);
    double sum = 0;
    for (const double lane : lanes) sum += lane;
    return sum;
  }

  void add_values(std::int64_t j, double weight) {
    const T* v = static_cast<const T*>(row_.v) + j * row_.v_stride;
    for (std::int64_t d = 0; d < row_.value_dim; ++d) values_[d] += weight * load(v + d);
  }

  const LoneRow& row_;
  StopToken& stop_;
  double q_[kMaxHeadDim];  ///< times scale
  double values_[kMaxHeadDim];
};

}  // namespace

bool attend_lone_row(const LoneRow& row, StopToken& stop, float* out, float& lse) {
  switch (row.kind) {
    case ElementKind::f16:
      return Attention<F16>(row, stop).run(out, lse);
    case ElementKind::bf16:
      return Attention<BF16>(row, stop).run(out, lse);
    case ElementKind::f32:
      break;
  }
  return Attention<float>(row, stop).run(out, lse);
}

}  // namespace metal_sdpa::cpu
