// The float64 oracle against sums written out by hand: what every other test trusts.
#include "oracle.h"

#include <cmath>
#include <cstdint>

#include "problems.h"
#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

/// One row, D = Dv = 1, q = 1; keys score k, values are 1, 10, 100, ...
struct OneRow {
  SdpaProblem problem;
  SdpaOperands operands;

  explicit OneRow(const std::vector<float>& keys) {
    problem.kv_capacity = problem.kv_len = static_cast<std::int64_t>(keys.size());
    problem.q_start = problem.kv_len - 1;
    problem.return_lse = true;
    problem.set_packed_layouts();
    const Device device("cpu");
    operands = poisoned_operands(device, problem);
    set_element(operands.q, 0, 1);
    float value = 1;
    for (std::size_t j = 0; j < keys.size(); ++j, value *= 10) {
      set_element(operands.k, j, keys[j]);
      set_element(operands.v, j, value);
    }
  }

  void mask(DType dtype, const std::vector<float>& entries) {
    problem.mask = MaskLayout{dtype, 0, 0, 0, 0, 1};
    operands.mask = Device("cpu").empty({static_cast<std::int64_t>(entries.size())}, dtype);
    for (std::size_t j = 0; j < entries.size(); ++j) {
      if (dtype == DType::u8) {
        operands.mask.host<std::uint8_t>()[j] = static_cast<std::uint8_t>(entries[j]);
      } else {
        set_element(operands.mask, j, entries[j]);
      }
    }
  }

  void check(double out, double lse) const {
    const Reference reference = reference_sdpa(problem, operands);
    CHECK(reference.out[0] == doctest::Approx(out).epsilon(1e-12));
    if (std::isfinite(lse)) CHECK(reference.lse[0] == doctest::Approx(lse).epsilon(1e-12));
    if (!std::isfinite(lse)) CHECK(reference.lse[0] == lse);
  }
};

}  // namespace

TEST_CASE("windows and starts: which of four keys a row sees") {
  OneRow row({0, 0, 0, 0});
  row.check(1111.0 / 4, std::log(4.0));
  row.problem.window_left = 1;  // keys 2 and 3
  row.check(1100.0 / 2, std::log(2.0));
  row.problem.q_start = 1;  // keys 0 and 1, and those behind
  row.check(1111.0 / 4, std::log(4.0));
  row.problem.window_right = 1;  // keys 0, 1, 2
  row.check(111.0 / 3, std::log(3.0));
  row.problem.kv_start = 1;  // keys 1, 2
  row.check(110.0 / 2, std::log(2.0));
  row.problem.causal = true;  // key 1
  row.check(10, 0);
  row.problem.query_len = 0;
  row.check(0, -INFINITY);
}

TEST_CASE("keys of a shard stand at their positions") {
  OneRow row({0, 0, 0, 0});  // at 1, 4, 7, 10
  row.problem.key_offset = 1;
  row.problem.key_stride = 3;
  row.problem.q_start = 7;
  row.problem.causal = true;
  row.check(111.0 / 3, std::log(3.0));
  row.problem.window_left = 3;  // 4 to 7
  row.check(110.0 / 2, std::log(2.0));
  row.problem.window_left = 2;
  row.check(100, 0);
}

TEST_CASE("what happens to a score, in its order") {
  OneRow row({2, -1, 4, 3});
  row.problem.scale = 0.5f;
  const double plain[] = {1, -0.5, 2, 1.5};
  row.problem.softcap = 1.5f;
  row.problem.alibi_slopes = HeadLayout{};
  row.operands.alibi_slopes = Device("cpu").empty({1}, DType::f32);
  set_element(row.operands.alibi_slopes, 0, 0.25f);
  row.mask(DType::f32, {1, 0, -INFINITY, -2});
  row.problem.sinks = HeadLayout{};
  row.operands.sinks = Device("cpu").empty({1}, DType::f32);
  set_element(row.operands.sinks, 0, 0.75f);
  const double bias[] = {1 - 0.75, -0.5, -INFINITY, -2};
  double sum = std::exp(0.75);
  double out = 0;
  for (int j = 0; j < 4; ++j) {
    const double weight = std::exp(1.5 * std::tanh(plain[j] / 1.5) + bias[j]);
    sum += weight;
    out += weight * std::pow(10.0, j);
  }
  row.check(out / sum, std::log(sum));
  row.mask(DType::u8, {0, 2, 0, 0});
  const double only = std::exp(1.5 * std::tanh(-0.5 / 1.5) - 0.5);
  row.check(10 * only / (only + std::exp(0.75)), std::log(only + std::exp(0.75)));
  row.mask(DType::u8, {0, 0, 0, 0});
  row.check(0, 0.75);
}

TEST_CASE("a lowest finite bias is a number, NaN is not, and both count as errors where wrong") {
  OneRow row({2, -1, 4, 3});
  const float lowest = -3.402823466e38f;
  row.mask(DType::f32, {lowest, lowest, lowest, lowest});
  CHECK(reference_sdpa(row.problem, row.operands).out[0] == doctest::Approx(1111.0 / 4));
  row.mask(DType::f32, {lowest, 0, lowest, -INFINITY});
  row.check(10, -1);
  row.mask(DType::f32, {0, NAN, 0, 0});
  const Reference reference = reference_sdpa(row.problem, row.operands);
  CHECK(std::isnan(reference.out[0]));
  set_element(row.operands.lse, 0, NAN);
  set_element(row.operands.out, 0, 1);
  CHECK(worst_error(row.problem, row.operands, reference) == INFINITY);
  set_element(row.operands.out, 0, NAN);
  CHECK(worst_error(row.problem, row.operands, reference) == 0);
  row.mask(DType::f32, {0, NAN, 0, 0});
  row.problem.window_left = 1;  // the NaN's key is out of reach
  row.check(100 / (1 + std::exp(-1.0)) + 1000 / (1 + std::exp(1.0)), 4 + std::log1p(std::exp(-1)));
}
