// What engines do to visibility and scores, on every kernel family and instruction set of this
// machine, against the float64 oracle: every pair of features, at random shapes and layouts.
#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "cpu_kernels.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

constexpr std::array<const char*, 4> kKernels{"sdpa", "sdpa_decode", "sdpa_prefill", ""};

constexpr std::array<bool Features::*, 10> kFeatures{
    &Features::window,        &Features::kv_starts,    &Features::query_lengths,
    &Features::key_positions, &Features::boolean_mask, &Features::additive_mask,
    &Features::softcap,       &Features::alibi_slopes, &Features::sinks,
    &Features::out_f32};

/// Runs every kernel on every instruction set, with one thread and with three, whose bits must be
/// the same.
void check_all_kernels(SdpaProblem problem, std::mt19937& rng, const std::string& what) {
  const Device any("cpu");
  const SdpaOperands x = random_operands(rng, any, problem);
  const Reference reference = reference_sdpa(problem, x);
  for (const std::string& isa : isas()) {
    const Device one = device_of(isa);
    const Device three = device_of(isa, 3);
    for (const char* kernel : kKernels) {
      problem.kernel = kernel;
      INFO(what, " isa ", isa, " kernel '", problem.kernel, "' dtype ", name_of(problem.dtype),
           " L ", problem.seq_len, " S ", problem.kv_capacity, " D ", problem.head_dim);
      fill_bytes(x.out, 0xff);
      sdpa(one, x, problem);
      REQUIRE(worst_error(problem, x, reference) <= 1.0);
      const std::vector<std::uint8_t> want = bytes_of(x.out);
      fill_bytes(x.out, 0xff);
      sdpa(three, x, problem);
      REQUIRE(bytes_of(x.out) == want);
    }
  }
}

std::string name_of_features(const Features& features) {
  constexpr std::array<const char*, 10> kNames{"window", "starts", "rows",    "positions",
                                               "bool",   "bias",   "softcap", "alibi",
                                               "sinks",  "out_f32"};
  std::string names;
  for (std::size_t i = 0; i < kFeatures.size(); ++i) {
    if (features.*kFeatures[i]) names += std::string(" ") + kNames[i];
  }
  return names;
}

/// Few elements a row, so that there are many keys: spans and blocks of every family.
SdpaProblem long_problem(std::mt19937& rng) {
  const auto between = [&](std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(rng);
  };
  SdpaProblem p;
  p.dtype = kDTypes[static_cast<std::size_t>(between(0, 2))];
  p.n_kv_heads = between(1, 2);
  p.n_heads = p.n_kv_heads * between(1, 3);
  p.head_dim = between(1, 12);
  p.value_dim = between(1, 12);
  p.kv_capacity = between(500, 2600);
  p.kv_len = between(1, 4) == 1 ? between(0, p.kv_capacity) : p.kv_capacity;
  p.batch = between(1, 2);
  p.seq_len = between(1, 3) == 1 ? 1 : between(1, 60);
  p.scale = 1 / std::sqrt(static_cast<float>(p.head_dim));
  p.causal = between(0, 1) == 1;
  p.return_lse = true;
  if (between(1, 3) == 1) p.q_start = between(0, p.kv_capacity);
  if (between(1, 3) == 1) {
    for (std::int64_t b = 0; b < p.batch; ++b) p.kv_lengths.push_back(between(0, p.kv_capacity));
  }
  p.set_packed_layouts();
  return p;
}

}  // namespace

TEST_CASE("every pair of features") {
  std::mt19937 rng(1908);
  for (std::size_t first = 0; first < kFeatures.size(); ++first) {
    for (std::size_t second = first; second < kFeatures.size(); ++second) {
      for (int round = 0; round < 3; ++round) {
        Features features;
        features.*kFeatures[first] = features.*kFeatures[second] = true;
        SdpaProblem problem = random_problem(rng, {128, 150, 60000});
        add_features(rng, features, problem);
        check_all_kernels(problem, rng, name_of_features(features));
      }
    }
  }
}

TEST_CASE("many features together") {
  std::mt19937 rng(1909);
  for (int round = 0; round < 60; ++round) {
    const Features features = random_features(rng, 2);
    SdpaProblem problem = random_problem(rng, {96, 200, 60000});
    add_features(rng, features, problem);
    check_all_kernels(problem, rng, name_of_features(features));
  }
}

TEST_CASE("many spans, some of which nobody sees") {
  std::mt19937 rng(1910);
  for (int round = 0; round < 60; ++round) {
    const Features features = random_features(rng, 3);
    SdpaProblem problem = long_problem(rng);
    add_features(rng, features, problem);
    check_all_kernels(problem, rng, name_of_features(features));
  }
}
