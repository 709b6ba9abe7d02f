// The float64 oracle.
#include "oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "support.h"

namespace metal_sdpa::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::size_t at(const TensorLayout& layout, std::int64_t b, std::int64_t h, std::int64_t i) {
  return static_cast<std::size_t>(layout.offset + b * layout.batch_stride + h * layout.head_stride +
                                  i * layout.row_stride);
}

double log_add(double a, double b) {
  const double high = std::max(a, b);
  if (high == -kInfinity) return high;
  return high + std::log1p(std::exp(std::min(a, b) - high));
}

/// log of the sum of exp over scores begin..end, halves first: no running maximum, no rescaling.
double log_sum_exp(const std::vector<double>& scores, std::size_t begin, std::size_t end) {
  if (begin == end) return -kInfinity;
  if (end - begin == 1) return scores[begin];
  const std::size_t middle = begin + (end - begin) / 2;
  return log_add(log_sum_exp(scores, begin, middle), log_sum_exp(scores, middle, end));
}

bool is_visible(const SdpaProblem& p, std::int64_t b, std::int64_t i, std::int64_t key) {
  if (key >= p.sequence_kv_len(b)) return false;
  return !p.causal || key <= p.sequence_q_start(b) + i;
}

struct Row {
  std::int64_t b, h, i;
};

void reference_row(const SdpaProblem& p, const SdpaOperands& x, const Row& row, Reference& ref) {
  const std::int64_t kv_h = row.h / (p.n_heads / p.n_kv_heads);
  const std::size_t q = at(p.q, row.b, row.h, row.i);
  std::vector<double> scores;
  double q_norm = 0;
  double k_norm_max = 0;
  for (std::int64_t d = 0; d < p.head_dim; ++d) {
    q_norm += std::pow(static_cast<double>(get_element(x.q, q + static_cast<std::size_t>(d))), 2);
  }
  std::vector<std::int64_t> keys;
  for (std::int64_t j = 0; j < p.kv_capacity; ++j) {
    if (!is_visible(p, row.b, row.i, j)) continue;
    const std::size_t k = at(p.k, row.b, kv_h, j);
    double product = 0;
    double k_norm = 0;
    for (std::int64_t d = p.head_dim - 1; d >= 0; --d) {
      const double kd = get_element(x.k, k + static_cast<std::size_t>(d));
      product += kd * static_cast<double>(get_element(x.q, q + static_cast<std::size_t>(d)));
      k_norm += kd * kd;
    }
    scores.push_back(product * static_cast<double>(p.scale));
    keys.push_back(j);
    k_norm_max = std::max(k_norm_max, k_norm);
  }
  const double lse = log_sum_exp(scores, 0, scores.size());
  double size_of_v = 0;
  for (std::int64_t d = 0; d < p.value_dim; ++d) {
    double out = 0;
    double magnitude = 0;
    for (std::size_t n = 0; n < keys.size(); ++n) {
      const double probability = std::exp(scores[n] - lse);
      const std::size_t v = at(p.v, row.b, kv_h, keys[n]) + static_cast<std::size_t>(d);
      out += probability * static_cast<double>(get_element(x.v, v));
      magnitude += probability * std::fabs(static_cast<double>(get_element(x.v, v)));
    }
    ref.out.push_back(out);
    size_of_v += magnitude * magnitude;
  }
  ref.lse.push_back(lse);
  ref.scale_of_v.push_back(std::sqrt(size_of_v));
  ref.score_size.push_back(std::fabs(static_cast<double>(p.scale)) *
                           std::sqrt(q_norm * k_norm_max));
}

template <typename Visit>
void for_each_row(const SdpaProblem& p, Visit visit) {
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t h = 0; h < p.n_heads; ++h) {
      for (std::int64_t i = 0; i < p.seq_len; ++i) visit(Row{b, h, i});
    }
  }
}

constexpr double kF32Unit = 0x1p-24;

/// Bound of one row, relative to scale_of_v, and what every element may be off besides.
double row_bound(const SdpaProblem& p, double score_size) {
  const double f32_term = kF32Unit * (16 + 6 * score_size);
  if (p.dtype == DType::f32) return f32_term;
  const double unit = p.dtype == DType::f16 ? 0x1p-11 : 0x1p-8;
  return f32_term + (p.value_dim >= 8 ? 1.25 : 2.0) * unit;
}

double smallest_subnormal(DType dtype) {
  if (dtype == DType::f16) return 0x1p-24;
  return dtype == DType::bf16 ? 0x1p-133 : 0x1p-149;
}

/// 0 for a right answer, the error in bounds for a near one, infinity for another kind of value.
double ratio(double error, double bound) {
  if (error == 0) return 0;
  return bound > 0 ? error / bound : kInfinity;
}

double lse_error(const SdpaProblem& p, const SdpaOperands& x, std::size_t row,
                 const Reference& ref) {
  const double got = x.lse.host<float>()[row];
  const double want = ref.lse[row];
  if (want == -kInfinity) return got == want ? 0 : kInfinity;
  const double bound = kF32Unit * (16 + 6 * ref.score_size[row] + 2 * std::fabs(want));
  (void)p;
  return ratio(std::fabs(got - want), bound);
}

}  // namespace

Reference reference_sdpa(const SdpaProblem& problem, const SdpaOperands& operands) {
  Reference reference;
  for_each_row(problem, [&](const Row& row) { reference_row(problem, operands, row, reference); });
  return reference;
}

double worst_error(const SdpaProblem& p, const SdpaOperands& x, const Reference& ref) {
  double worst = 0;
  // A NaN must not lose against a number, neither before nor after it.
  const auto note = [&](double error) {
    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
  };
  std::size_t row_index = 0;
  for_each_row(p, [&](const Row& row) {
    double squares = 0;
    for (std::int64_t d = 0; d < p.value_dim; ++d) {
      const std::size_t element = at(p.out, row.b, row.h, row.i) + static_cast<std::size_t>(d);
      const std::size_t want =
          row_index * static_cast<std::size_t>(p.value_dim) + static_cast<std::size_t>(d);
      squares += std::pow(static_cast<double>(get_element(x.out, element)) - ref.out[want], 2);
    }
    const double bound = row_bound(p, ref.score_size[row_index]) * ref.scale_of_v[row_index] +
                         smallest_subnormal(p.dtype) * std::sqrt(static_cast<double>(p.value_dim));
    note(ratio(std::sqrt(squares), bound));
    if (p.return_lse) note(lse_error(p, x, row_index, ref));
    ++row_index;
  });
  return worst;
}

}  // namespace metal_sdpa::test
