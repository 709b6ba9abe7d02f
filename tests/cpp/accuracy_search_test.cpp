// The f32 bound under inputs that are made to break it: rows of equal elements, whose sums round
// the same way at every addition, and rows whose weights are nearly equal. A climb from random
// starts looks for the worst of each family.
#include <algorithm>
#include <array>
#include <cmath>

#include "cpu_kernels.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

constexpr int kParameters = 4;
using Parameters = std::array<double, kParameters>;  // each in 0..1

/// The largest error that a climb meets. `measure` is error over bound at some parameters.
template <typename Measure>
double climb(std::mt19937& rng, int starts, int steps, const Measure& measure) {
  std::uniform_real_distribution<double> uniform;
  std::normal_distribution<double> normal;
  double worst = 0;
  for (int start = 0; start < starts; ++start) {
    Parameters here;
    for (double& x : here) x = uniform(rng);
    double height = measure(here);
    for (int step = 0; step < steps; ++step) {
      Parameters next = here;
      for (double& x : next) x = std::clamp(x + normal(rng) * std::exp2(-step % 12), 0.0, 1.0);
      const double other = measure(next);
      if (!(other >= height)) continue;
      height = other;
      here = next;
    }
    worst = std::max(worst, height);
  }
  return worst;
}

SdpaOperands operands_of(const Device& device, const SdpaProblem& p) {
  const SdpaOperands x = poisoned_operands(device, p);
  fill_bytes(x.q, 0);
  fill_bytes(x.k, 0);
  fill_bytes(x.v, 0);
  return x;
}

void fill(const Buffer& buffer, std::int64_t begin, std::int64_t end, double value) {
  for (std::int64_t i = begin; i < end; ++i) {
    set_element(buffer, static_cast<std::size_t>(i), static_cast<float>(value));
  }
}

/// Two keys of equal elements, values of 1 and -1: the difference of two scores decides.
double error_of_equal_elements(const Device& device, SdpaProblem p, const Parameters& at) {
  const double a = std::exp2(2 * at[0] - 1);
  const double b = std::exp2(2 * at[1] - 1);
  p.scale =
      static_cast<float>(std::exp2(9 * at[2] - 2) / (static_cast<double>(p.head_dim) * a * b));
  const SdpaOperands x = operands_of(device, p);
  fill(x.q, 0, p.n_heads * p.seq_len * p.head_dim, a);
  fill(x.k, 0, p.head_dim, b);
  fill(x.k, p.head_dim, 2 * p.head_dim, std::round(b * 16) / 16);
  fill(x.v, 0, p.value_dim, 1);
  fill(x.v, p.value_dim, 2 * p.value_dim, -1);
  return error_of_run(device, p, x);
}

/// One key of weight 1, the others just below, values equal but for one.
double error_of_even_weights(const Device& device, SdpaProblem p, const Parameters& at) {
  p.scale = 1;
  const double below = 0.3 * at[0] * at[0] * at[0];
  const SdpaOperands x = operands_of(device, p);
  for (std::int64_t i = 0; i < p.n_heads * p.seq_len; ++i) {
    fill(x.q, i * p.head_dim, i * p.head_dim + 1, 1);
  }
  for (std::int64_t j = 1; j < p.kv_len; ++j) fill(x.k, j * p.head_dim, j * p.head_dim + 1, -below);
  fill(x.v, 0, p.value_dim, std::exp2(6 * at[1] - 5));
  fill(x.v, p.value_dim, p.kv_len * p.value_dim, std::exp2(2 * at[2] - 1));
  return error_of_run(device, p, x);
}

}  // namespace

TEST_CASE("rows of equal elements are within the bound") {
  std::mt19937 rng(11);
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa);
    for (const char* kernel : {"sdpa", "sdpa_decode", "sdpa_prefill"}) {
      for (const DType dtype : {DType::f32, DType::f16}) {
        for (const std::int64_t head_dim : {31, 64, 128, 200, 256, 512, 1024}) {
          for (const std::int64_t rows : {1, 8, 16}) {
            const SdpaProblem p = problem_of(kernel, dtype, rows, 1, 2, head_dim, 8);
            INFO(isa, " ", kernel, " ", name_of(dtype), " D ", head_dim, " rows ", rows);
            CHECK(climb(rng, 3, 12, [&](const Parameters& at) {
                    return error_of_equal_elements(device, p, at);
                  }) <= 1.0);
          }
        }
      }
    }
  }
}

TEST_CASE("rows of nearly equal weights are within the bound") {
  std::mt19937 rng(12);
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa);
    for (const char* kernel : {"sdpa", "sdpa_decode", "sdpa_prefill"}) {
      for (const std::int64_t keys : {300, 512, 1030, 2049}) {
        for (const std::int64_t rows : {1, 8, 16}) {
          const SdpaProblem p =
              problem_of(kernel, DType::f32, rows, 1, keys, 8, rows == 1 ? 128 : 8);
          INFO(isa, " ", kernel, " keys ", keys, " rows ", rows);
          CHECK(climb(rng, 2, 8, [&](const Parameters& at) {
                  return error_of_even_weights(device, p, at);
                }) <= 1.0);
        }
      }
    }
  }
}
