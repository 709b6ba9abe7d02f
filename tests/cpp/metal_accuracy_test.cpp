// A search for inputs on which the Metal kernels round worst: rows of equal elements, whose
// products round the same way at every addition, and nearly equal weights over many keys. It climbs
// from random starts; every step runs a batch of candidates at a time.
#include <algorithm>
#include <array>
#include <cmath>
#include <random>

#include "metal_problems.h"
#include "oracle.h"
#include "problems.h"

namespace metal_sdpa::test {
namespace {

constexpr std::int64_t kCandidates = 24;
constexpr int kSteps = 8;
constexpr std::size_t kParameters = 5;

/// A candidate: numbers from 0 to 1 that a family makes inputs of.
using Candidate = std::array<double, kParameters>;

/// Elements of one sequence of a batch of packed tensors.
struct SequenceData {
  const SdpaProblem& p;
  const SdpaOperands& x;
  std::size_t b;

  std::size_t width() const { return static_cast<std::size_t>(p.head_dim); }
  std::size_t n_keys() const { return static_cast<std::size_t>(p.kv_len); }
  void set_q(std::size_t d, double value) const {
    const auto rows = static_cast<std::size_t>(p.n_heads * p.seq_len);
    for (std::size_t row = 0; row < rows; ++row) {
      set_element(x.q, (b * rows + row) * width() + d, static_cast<float>(value));
    }
  }
  void set_k(std::size_t key, std::size_t d, double value) const {
    set_element(x.k, (b * n_keys() + key) * width() + d, static_cast<float>(value));
  }
  void set_v(std::size_t key, double value) const {
    for (std::size_t d = 0; d < width(); ++d) {
      set_element(x.v, (b * n_keys() + key) * width() + d, static_cast<float>(value));
    }
  }
};

/// Two keys of equal elements, of which the second has few bits and so an exact score; values of
/// both signs.
void constant_rows(const SequenceData& data, const Candidate& c) {
  const double b = std::exp2(2 * c[0] - 1);
  const double score = std::exp2(9 * c[1] - 2);
  const double q = score / (static_cast<double>(data.width()) * b) * (0.75 + 0.5 * c[2]);
  for (std::size_t d = 0; d < data.width(); ++d) {
    data.set_q(d, q);
    data.set_k(0, d, b);
    data.set_k(1, d, std::round(b * 16) / 16);
  }
  data.set_v(0, 1);
  data.set_v(1, -std::exp2(4 * c[3] - 3));
}

/// One key of weight 1, the others a little below; one value of its own, the others equal.
void near_uniform(const SequenceData& data, const Candidate& c) {
  data.set_q(0, 1);
  for (std::size_t key = 0; key < data.n_keys(); ++key) {
    data.set_k(key, 0, key == 0 ? 0 : -0.3 * std::pow(c[0], 3));
    data.set_v(key, key == 0 ? std::exp2(6 * c[1] - 5) : std::exp2(2 * c[2] - 1));
  }
}

using Family = void (*)(const SequenceData&, const Candidate&);

/// Error over its bound of each sequence: the larger of output's and log-sum-exp's.
std::vector<double> ratios(const SdpaProblem& p, const SdpaOperands& x) {
  const Reference reference = reference_sdpa(p, x);
  const auto rows = static_cast<std::size_t>(p.n_heads * p.seq_len);
  const auto width = static_cast<std::size_t>(p.head_dim);
  std::vector<double> result(static_cast<std::size_t>(p.batch));
  for (std::size_t row = 0; row < reference.lse.size(); ++row) {
    double squares = 0;
    for (std::size_t e = row * width; e < (row + 1) * width; ++e) {
      squares += std::pow(static_cast<double>(get_element(x.out, e)) - reference.out[e], 2);
    }
    const double f32_bound = 0x1p-24 * (16 + 6 * reference.score_size[row]);
    const double rounding = p.dtype == DType::f32 ? 0 : 1.25 * 0x1p-11;
    const double lse_bound = f32_bound + 0x1p-24 * 2 * std::fabs(reference.lse[row]);
    const double lse = static_cast<double>(x.lse.host<float>()[row]);
    double& worst = result[row / rows];
    worst =
        std::max({worst, std::sqrt(squares) / ((f32_bound + rounding) * reference.scale_of_v[row]),
                  std::fabs(lse - reference.lse[row]) / lse_bound});
  }
  return result;
}

/// The worst ratio that a climb finds for one kernel.
double worst_found(const Device& device, SdpaProblem problem, Family family, std::mt19937& rng) {
  std::uniform_real_distribution<double> uniform(0, 1);
  std::normal_distribution<double> step(0, 0.03);
  const SdpaOperands x = poisoned_operands(device, problem);
  std::vector<Candidate> candidates(kCandidates);
  Candidate best{};
  double worst = -1;
  for (int n = 0; n < kSteps; ++n) {
    fill_bytes(x.q, 0);
    fill_bytes(x.k, 0);
    for (std::size_t b = 0; b < candidates.size(); ++b) {
      for (double& parameter : candidates[b]) parameter = uniform(rng);
      if (n >= kSteps / 2 || (n > 0 && b % 2 == 0)) {
        candidates[b] = best;
        for (double& parameter : candidates[b]) {
          parameter = std::clamp(parameter + step(rng), 0.0, 1.0);
        }
      }
      family({problem, x, b}, candidates[b]);
    }
    sdpa(device, x, problem);
    const std::vector<double> found = ratios(problem, x);
    for (std::size_t b = 0; b < found.size(); ++b) {
      if (!(found[b] > worst)) continue;
      worst = found[b];
      best = candidates[b];
    }
  }
  return worst;
}

void check_family(Family family, DType dtype, std::int64_t seq_len, std::int64_t kv_len,
                  std::int64_t head_dim, std::mt19937& rng) {
  const Device device("metal");
  SdpaProblem problem =
      problem_of({kCandidates, 1, 1, seq_len, kv_len, kv_len, head_dim, head_dim, false}, dtype);
  problem.scale = 1;
  for (const std::string& kernel : kernels_for(device, problem)) {
    problem.kernel = kernel;
    const double worst = worst_found(device, problem, family, rng);
    INFO(kernel, " ", std::string(dtype_name(dtype)), " kv ", kv_len, " D ", head_dim);
    CHECK(worst <= 1.0);
  }
}

}  // namespace

TEST_CASE("metal accuracy: rows of equal elements") {
  std::mt19937 rng(67);
  for (const DType dtype : {DType::f32, DType::f16}) {
    for (const std::int64_t head_dim : {40, 64, 128, 256, 576}) {
      check_family(constant_rows, dtype, 1, 2, head_dim, rng);
    }
  }
}

TEST_CASE("metal accuracy: nearly equal weights") {
  std::mt19937 rng(71);
  for (const std::int64_t kv_len : {33, 300, 700}) {
    check_family(near_uniform, DType::f32, 1, kv_len, 8, rng);
  }
  check_family(near_uniform, DType::f32, 1, 300, 64, rng);
}

}  // namespace metal_sdpa::test
