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
  if (std::isnan(a) || std::isnan(b)) return NAN;
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

/// Sides past 2^60 are unlimited.
bool is_limited(std::int64_t side) { return side >= 0 && side <= std::int64_t{1} << 60; }

struct Row {
  std::int64_t b, h, i;
};

/// At most 2^62 from 0, keys at most 2^61, so that differences stay in 64 bits.
std::int64_t query_position(const SdpaProblem& p, const Row& row) {
  return p.sequence_q_start(row.b) + row.i;
}

std::int64_t key_position(const SdpaProblem& p, std::int64_t key) {
  return p.key_offset + key * p.key_stride;
}

std::size_t mask_element(const SdpaProblem& p, const Row& row, std::int64_t key) {
  const MaskLayout& mask = *p.mask;
  return static_cast<std::size_t>(mask.offset + row.b * mask.batch_stride +
                                  row.h * mask.head_stride + row.i * mask.row_stride +
                                  key * mask.key_stride);
}

double head_number(const HeadLayout& layout, const Buffer& buffer, const Row& row) {
  return static_cast<double>(
      get_element(buffer, static_cast<std::size_t>(layout.offset + row.b * layout.batch_stride +
                                                   row.h * layout.head_stride)));
}

/// What is added to a score, -inf where the mask hides the key.
double bias_of(const SdpaProblem& p, const SdpaOperands& x, const Row& row, std::int64_t key) {
  double bias = 0;
  if (p.alibi_slopes.has_value()) {
    const auto distance = static_cast<double>(query_position(p, row) - key_position(p, key));
    bias -= head_number(*p.alibi_slopes, x.alibi_slopes, row) * std::fabs(distance);
  }
  if (!p.mask.has_value()) return bias;
  const std::size_t element = mask_element(p, row, key);
  if (p.mask->dtype == DType::u8) {
    return x.mask.host<std::uint8_t>()[element] != 0 ? bias : -kInfinity;
  }
  return bias + static_cast<double>(get_element(x.mask, element));
}

/// The keys that count in a row and what float64 makes of them.
struct Scores {
  std::vector<std::int64_t> keys;
  std::vector<double> values;  ///< scores, then the sink where there is one
  std::vector<double> biases;  ///< sizes, the sink's its own
  double k_norm_max = 0;
  double most = -kInfinity;
};

Scores scores_of(const SdpaProblem& p, const SdpaOperands& x, const Row& row) {
  const std::int64_t kv_h = row.h / (p.n_heads / p.n_kv_heads);
  const std::size_t q = at(p.q, row.b, row.h, row.i);
  Scores scores;
  for (std::int64_t j = 0; j < p.kv_capacity; ++j) {
    if (!is_in_reach(p, row.b, row.i, j)) continue;
    const double bias = bias_of(p, x, row, j);
    if (bias == -kInfinity) continue;
    const std::size_t k = at(p.k, row.b, kv_h, j);
    double product = 0;
    double k_norm = 0;
    for (std::int64_t d = p.head_dim - 1; d >= 0; --d) {
      const double kd = get_element(x.k, k + static_cast<std::size_t>(d));
      product += kd * static_cast<double>(get_element(x.q, q + static_cast<std::size_t>(d)));
      k_norm += kd * kd;
    }
    double score = product * static_cast<double>(p.scale);
    if (p.softcap != 0) {
      const auto cap = static_cast<double>(p.softcap);
      score = cap * std::tanh(score / cap);
    }
    scores.keys.push_back(j);
    scores.values.push_back(score + bias);
    scores.biases.push_back(std::fabs(bias));
    scores.k_norm_max = std::max(scores.k_norm_max, k_norm);
  }
  if (p.sinks.has_value()) {
    scores.values.push_back(head_number(*p.sinks, x.sinks, row));
    scores.biases.push_back(std::fabs(scores.values.back()));
  }
  for (const double value : scores.values) scores.most = std::max(scores.most, value);
  return scores;
}

/// Biases matter where a weight is more than nothing beside the row's largest.
double largest_bias(const Scores& scores) {
  constexpr double kNothing = 104;  // exp(-104) is below half of the smallest f32
  double largest = 0;
  for (std::size_t n = 0; n < scores.values.size(); ++n) {
    const bool counts = scores.values[n] > -kInfinity && scores.values[n] >= scores.most - kNothing;
    if (counts) largest = std::max(largest, scores.biases[n]);
  }
  return largest;
}

void reference_row(const SdpaProblem& p, const SdpaOperands& x, const Row& row, Reference& ref) {
  const std::int64_t kv_h = row.h / (p.n_heads / p.n_kv_heads);
  const std::size_t q = at(p.q, row.b, row.h, row.i);
  double q_norm = 0;
  for (std::int64_t d = 0; d < p.head_dim; ++d) {
    q_norm += std::pow(static_cast<double>(get_element(x.q, q + static_cast<std::size_t>(d))), 2);
  }
  const Scores scores = scores_of(p, x, row);
  // Beside the largest score, since the logarithm of a sum is lost beside a huge one.
  const double reference = scores.most == -kInfinity ? 0 : scores.most;
  std::vector<double> beside;
  for (const double value : scores.values) beside.push_back(value - reference);
  const double lse = log_sum_exp(beside, 0, beside.size());
  double size_of_v = 0;
  for (std::int64_t d = 0; d < p.value_dim; ++d) {
    double out = 0;
    double magnitude = 0;
    for (std::size_t n = 0; n < scores.keys.size(); ++n) {
      if (scores.values[n] == -kInfinity) continue;  // as good as hidden
      const double probability = std::exp(beside[n] - lse);
      const std::size_t v = at(p.v, row.b, kv_h, scores.keys[n]) + static_cast<std::size_t>(d);
      out += probability * static_cast<double>(get_element(x.v, v));
      magnitude += probability * std::fabs(static_cast<double>(get_element(x.v, v)));
    }
    ref.out.push_back(out);
    if (std::isfinite(out)) size_of_v += magnitude * magnitude;
  }
  ref.lse.push_back(reference + lse);
  ref.scale_of_v.push_back(std::sqrt(size_of_v));
  const double product_size = scores.keys.empty() ? 0
                                                  : std::fabs(static_cast<double>(p.scale)) *
                                                        std::sqrt(q_norm * scores.k_norm_max);
  ref.score_size.push_back(product_size + largest_bias(scores));
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

bool is_same_kind(double got, double want) {
  return std::isnan(want) ? std::isnan(got) : got == want;
}

double lse_error(const SdpaOperands& x, std::size_t row, const Reference& ref) {
  const double got = x.lse.host<float>()[row];
  const double want = ref.lse[row];
  if (want == -kInfinity) return got == want ? 0 : kInfinity;
  if (!std::isfinite(want)) return std::isfinite(got) ? kInfinity : 0;
  if (std::fabs(want) > std::numeric_limits<float>::max())
    return got == want * kInfinity ? 0 : kInfinity;
  const double bound = kF32Unit * (16 + 6 * ref.score_size[row] + 2 * std::fabs(want));
  return ratio(std::fabs(got - want), bound);
}

}  // namespace

bool is_in_reach(const SdpaProblem& p, std::int64_t b, std::int64_t i, std::int64_t key) {
  if (key >= p.sequence_kv_len(b) || key < p.sequence_kv_start(b)) return false;
  if (i >= p.sequence_query_len(b)) return false;
  const std::int64_t behind = key_position(p, key) - query_position(p, {b, 0, i});
  if (p.causal && behind > 0) return false;
  if (!p.causal && is_limited(p.window_right) && behind > p.window_right) return false;
  return !is_limited(p.window_left) || -behind <= p.window_left;
}

bool is_visible(const SdpaProblem& p, const SdpaOperands& x, std::int64_t b, std::int64_t h,
                std::int64_t i, std::int64_t key) {
  return is_in_reach(p, b, i, key) && bias_of(p, x, {b, h, i}, key) != -kInfinity;
}

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
      const double want =
          ref.out[row_index * static_cast<std::size_t>(p.value_dim) + static_cast<std::size_t>(d)];
      const double got = get_element(x.out, element);
      if (std::isfinite(want)) {
        squares += std::pow(got - want, 2);
      } else {
        note(is_same_kind(got, want) ? 0 : kInfinity);
      }
    }
    const double bound =
        row_bound(p, ref.score_size[row_index]) * ref.scale_of_v[row_index] +
        smallest_subnormal(p.out_dtype()) * std::sqrt(static_cast<double>(p.value_dim));
    note(ratio(std::sqrt(squares), bound));
    if (p.return_lse) note(lse_error(x, row_index, ref));
    ++row_index;
  });
  return worst;
}

}  // namespace metal_sdpa::test
