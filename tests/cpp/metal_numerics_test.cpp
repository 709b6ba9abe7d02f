// Numbers of the Metal kernels at their limits: scores of any finite size, states that nothing but
// their own keys changes, and a search for inputs whose roundings all go one way.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "metal_problems.h"
#include "oracle.h"
#include "problems.h"

namespace metal_sdpa::test {
namespace {

constexpr float kFar = 3.3e38f;  // a bfloat16, too

/// Queries (1, 0, ...) over keys (score, 0, ...), so that the scores are those, exactly.
SdpaOperands operands_of_scores(const Device& device, SdpaProblem& problem,
                                const std::vector<float>& scores, std::mt19937& rng) {
  problem.scale = 1;
  const SdpaOperands x = random_operands(rng, device, problem);
  fill_bytes(x.q, 0);
  fill_bytes(x.k, 0);
  const auto width = static_cast<std::size_t>(problem.head_dim);
  for (std::size_t row = 0; row < x.q.element_count() / width; ++row) {
    set_element(x.q, row * width, 1);
  }
  for (std::size_t key = 0; key < x.k.element_count() / width; ++key) {
    set_element(x.k, key * width, scores[key % scores.size()]);
  }
  return x;
}

/// Scores of `n_keys`, one pattern a call.
std::vector<float> far_scores(int pattern, std::size_t n_keys) {
  std::vector<float> scores(n_keys);
  for (std::size_t j = 0; j < n_keys; ++j) {
    const float rising = static_cast<float>(2 * j) / static_cast<float>(n_keys) - 1;
    const float patterns[] = {-2.5e38f, 2.5e38f, -kFar, kFar, j % 3 == 1 ? kFar : -kFar,
                              rising * kFar, -rising * kFar,
                              // across the largest whole reference, up and down, key by key
                              0x1p20f + 16 * rising, 0x1p20f - 16 * rising, -0x1p20f + 16 * rising,
                              j % 40 < 20 ? 3.0f : 0x1p23f};
    scores[j] = patterns[pattern];
  }
  return scores;
}
constexpr int kPatterns = 11;

/// Softmax over those scores in float64, which is about differences: beside 1e38 a log-sum-exp has
/// no room for the number of keys. Every query has the same answer. What counts as the size of a
/// score is `score_size`.
Reference reference_of_scores(const SdpaProblem& p, const SdpaOperands& x, double score_size) {
  Reference reference;
  const auto width = static_cast<std::size_t>(p.head_dim);
  const auto n_keys = static_cast<std::size_t>(p.kv_len);
  double top = -INFINITY;
  for (std::size_t j = 0; j < n_keys; ++j) {
    top = std::max(top, static_cast<double>(get_element(x.k, j * width)));
  }
  double sum = 0;
  std::vector<double> out(width);
  std::vector<double> size(width);
  for (std::size_t j = 0; j < n_keys; ++j) {
    const double weight = std::exp(static_cast<double>(get_element(x.k, j * width)) - top);
    sum += weight;
    for (std::size_t d = 0; d < width; ++d) {
      const double v = get_element(x.v, j * width + d);
      out[d] += weight * v;
      size[d] += weight * std::fabs(v);
    }
  }
  double squares = 0;
  for (std::size_t d = 0; d < width; ++d) {
    out[d] /= sum;
    squares += std::pow(size[d] / sum, 2);
  }
  for (std::int64_t row = 0; row < p.n_heads * p.seq_len; ++row) {
    reference.out.insert(reference.out.end(), out.begin(), out.end());
    reference.lse.push_back(top + std::log(sum));
    reference.scale_of_v.push_back(std::sqrt(squares));
    reference.score_size.push_back(score_size);
  }
  return reference;
}

/// The one step of a plan as two, the second from row `first` on: tiles then hold other rows.
Plan cut_at_row(const Plan& plan, std::uint32_t first) {
  REQUIRE(plan.steps.size() == 1);
  Plan cut = plan;
  cut.steps.push_back(plan.steps[0]);
  for (std::size_t n = 0; n < 2; ++n) {
    PlanStep& step = cut.steps[n];
    SdpaArgs args{};
    REQUIRE(step.args.bytes.size() == sizeof(args));
    std::memcpy(&args, step.args.bytes.begin(), sizeof(args));
    REQUIRE(args.n_spans == 1);
    (n == 0 ? args.row_end : args.row_begin) = first;
    std::memcpy(step.args.bytes.begin(), &args, sizeof(args));
    const std::uint32_t rows = (args.row_end - args.row_begin) * args.n_heads / args.n_kv_heads;
    const std::uint32_t block = 8 * args.group_split;  // rows of a threadgroup in f32
    step.threadgroups.z = (rows + block - 1) / block;
  }
  return cut;
}

}  // namespace

TEST_CASE("metal numerics: no finite score becomes infinite") {
  const Device device("metal");
  std::mt19937 rng(59);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int64_t seq_len : {1, 40}) {
      for (const std::int64_t kv_len : {2, 40, 700}) {
        if (seq_len > 1 && kv_len > 40) continue;
        for (int pattern = 0; pattern < kPatterns; ++pattern) {
          SdpaProblem problem = problem_of({1, 2, 1, seq_len, kv_len, kv_len, 8, 8, false}, dtype);
          const std::vector<float> scores = far_scores(pattern, static_cast<std::size_t>(kv_len));
          const SdpaOperands x = operands_of_scores(device, problem, scores, rng);
          // The scores are exact. Where they cross the largest whole reference, weights are as
          // good as n ln 2 is: half a unit of 2^20.
          const double score_size = pattern < 7 ? 0 : 0x1p20;
          const Reference reference = reference_of_scores(problem, x, score_size);
          for (const std::string& kernel : kernels_for(device, problem)) {
            problem.kernel = kernel;
            fill_bytes(x.out, 0xff);
            fill_bytes(x.lse, 0xff);
            sdpa(device, x, problem);
            INFO(kernel, " ", std::string(dtype_name(dtype)), " L ", seq_len, " kv ", kv_len,
                 " pattern ", pattern);
            CHECK(worst_error(problem, x, reference) <= 1.0);
          }
        }
      }
    }
  }
}

TEST_CASE("metal numerics: the rows that share its tile do not change a row's bits") {
  // A row that stands before others in its tile goes through tiles of keys that only those see.
  // Values of many sizes, so that the error of a sum is at times more than half a unit.
  const Device device("metal");
  std::mt19937 rng(61);
  std::uniform_real_distribution<float> exponent(-12, 12);
  for (const std::int64_t head_dim : {32, 64, 128}) {
    SdpaProblem problem = problem_of({1, 7, 1, 40, 96, 96, head_dim, head_dim, true}, DType::f32);
    problem.kernel = "sdpa_prefill";
    problem.q_start = 20;
    const SdpaOperands x = random_operands(rng, device, problem);
    for (std::size_t i = 0; i < x.v.element_count(); ++i) {
      set_element(x.v, i, get_element(x.v, i) * std::exp2(exponent(rng)));
    }
    const Plan plan = plan_metal_sdpa(problem, MetalFacts{});
    run_plan(device, plan, x);
    const auto out = bytes_of(x.out);
    const auto lse = bytes_of(x.lse);
    for (const std::uint32_t first : {1u, 2u, 3u, 5u, 13u}) {
      INFO("D ", head_dim, ", rows cut at ", first);
      fill_bytes(x.out, 0xff);
      fill_bytes(x.lse, 0xff);
      run_plan(device, cut_at_row(plan, first), x);
      CHECK(bytes_of(x.out) == out);
      CHECK(bytes_of(x.lse) == lse);
    }
  }
}

}  // namespace metal_sdpa::test
