// What engines do to scores and visibility, on every Metal kernel, against float64.
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "metal_problems.h"
#include "oracle.h"
#include "problems.h"

namespace metal_sdpa::test {
namespace {

constexpr std::array<const char*, 3> kKernels{"sdpa", "sdpa_decode", "sdpa_prefill"};

constexpr std::array<bool Features::*, 10> kFeatures{
    &Features::window,        &Features::kv_starts,    &Features::query_lengths,
    &Features::key_positions, &Features::boolean_mask, &Features::additive_mask,
    &Features::softcap,       &Features::alibi_slopes, &Features::sinks,
    &Features::out_f32};

// Decode, a chunk and a prefill; one and two heads of a group; head dims of one simdgroup, under a
// kernel's own, and of several.
constexpr std::array<Case, 5> kShapes{
    Case{2, 4, 2, 1, 90, 93, 64, 64, true}, Case{1, 3, 1, 6, 75, 80, 40, 40, false},
    Case{2, 2, 1, 19, 60, 64, 32, 32, true}, Case{1, 2, 1, 5, 70, 70, 256, 256, true},
    Case{1, 2, 2, 37, 50, 50, 64, 64, false}};

/// Heads inside rows, rows that are apart, odd offsets.
void stride(SdpaProblem& p) {
  const auto layout = [&](std::int64_t heads, std::int64_t rows, std::int64_t width) {
    const std::int64_t row = heads * (width + 1);
    return TensorLayout{3, rows * row, width + 1, row};
  };
  p.q = layout(p.n_heads, p.seq_len, p.head_dim);
  p.k = layout(p.n_kv_heads, p.kv_capacity, p.head_dim);
  p.v = layout(p.n_kv_heads, p.kv_capacity, p.value_dim);
  p.out = layout(p.n_heads, p.seq_len, p.value_dim);
}

void fill_outputs(const SdpaOperands& x) {
  fill_bytes(x.out, 0x3c);
  if (x.lse.byte_len() > 0) fill_bytes(x.lse, 0x3c);
}

std::string text_of(const SdpaProblem& p) {
  std::string text = p.kernel + " " + std::string(dtype_name(p.dtype));
  const auto add = [&](const char* name, std::int64_t value) {
    text += std::string(" ") + name + " " + std::to_string(value);
  };
  add("L", p.seq_len);
  add("kv", p.kv_len);
  add("D", p.head_dim);
  add("left", p.window_left);
  add("right", p.window_right);
  add("causal", p.causal);
  add("q_start", p.sequence_q_start(0));
  add("kv_start", p.sequence_kv_start(0));
  add("query_len", p.sequence_query_len(0));
  add("key_stride", p.key_stride);
  if (p.mask.has_value()) text += " mask " + std::string(dtype_name(p.mask->dtype));
  if (p.softcap != 0) text += " softcap";
  if (p.alibi_slopes.has_value()) text += " alibi";
  if (p.sinks.has_value()) text += " sinks";
  if (p.out_f32) text += " out_f32";
  return text;
}

void check_plan(const Device& device, const Plan& plan, const SdpaProblem& problem,
                const SdpaOperands& x, const Reference& reference) {
  fill_outputs(x);
  run_plan(device, plan, x);
  const double error = worst_error(problem, x, reference);
  INFO(text_of(problem), ": ", error);
  CHECK(error <= 1.0);
}

MaskLayout packed_mask(const SdpaProblem& p, DType dtype) {
  const std::int64_t row = p.kv_capacity;
  return {dtype, 0, p.n_heads * p.seq_len * row, p.seq_len * row, row, 1};
}

/// A mask of one value everywhere.
Buffer constant_mask(const Device& device, const SdpaProblem& p, float value) {
  const Buffer mask =
      device.empty({p.batch * p.n_heads * p.seq_len * p.kv_capacity}, p.mask->dtype);
  if (p.mask->dtype == DType::u8) {
    fill_bytes(mask, value != 0 ? 1 : 0);
    return mask;
  }
  for (std::size_t i = 0; i < mask.element_count(); ++i) set_element(mask, i, value);
  return mask;
}

struct Bits {
  std::vector<std::uint8_t> out, lse;
  bool operator==(const Bits&) const = default;
};

Bits bits_of(const Device& device, const Plan& plan, const SdpaOperands& x) {
  fill_outputs(x);
  run_plan(device, plan, x);
  return {bytes_of(x.out), bytes_of(x.lse)};
}

}  // namespace

TEST_CASE("metal features: every pair of them, on every kernel, within the bounds of float64") {
  const Device device("metal");
  std::mt19937 rng(101);
  std::size_t n = 0;
  for (std::size_t i = 0; i < kFeatures.size(); ++i) {
    for (std::size_t j = i; j < kFeatures.size(); ++j) {
      for (const char* kernel : kKernels) {
        Features features;
        features.*kFeatures[i] = features.*kFeatures[j] = true;
        SdpaProblem problem = problem_of(kShapes[n % kShapes.size()], kDTypes[n / 3 % 3]);
        if (n % 2 == 1) stride(problem);
        if (n % 7 == 3) problem.kv_lengths.assign(static_cast<std::size_t>(problem.batch), 41);
        add_features(rng, features, problem);
        problem.kernel = kernel;
        const SdpaOperands x = random_operands(rng, device, problem);
        const Plan plan = plan_with_spans(problem, n % 3 == 0 ? 32 : 4096);
        check_plan(device, plan, problem, x, reference_sdpa(problem, x));
        ++n;
      }
    }
  }
}

TEST_CASE("metal features: many of them at once") {
  const Device device("metal");
  std::mt19937 rng(103);
  for (int n = 0; n < 300; ++n) {
    const auto at = static_cast<std::size_t>(n);
    SdpaProblem problem = problem_of(kShapes[at % kShapes.size()], kDTypes[at / 5 % 3]);
    if (n % 2 == 1) stride(problem);
    add_features(rng, random_features(rng, 2), problem);
    problem.kernel = kKernels[at % 3];
    const SdpaOperands x = random_operands(rng, device, problem);
    const Plan plan = plan_with_spans(problem, n % 2 == 0 ? 32 : 64);
    check_plan(device, plan, problem, x, reference_sdpa(problem, x));
  }
}

TEST_CASE("metal features: windows and starts around every edge of tiles and spans") {
  const Device device("metal");
  std::mt19937 rng(107);
  constexpr std::array<std::int64_t, 12> kEdges{0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65};
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int64_t seq_len : {1, 11}) {
      SdpaProblem problem = problem_of({1, 2, 1, seq_len, 101, 104, 32, 32, true}, dtype);
      problem.sinks = HeadLayout{DType::f32};
      const SdpaOperands x = random_operands(rng, device, problem);
      for (const std::int64_t edge : kEdges) {
        for (const char* kernel : {"sdpa_decode", "sdpa_prefill", "sdpa"}) {
          problem.kernel = kernel;
          problem.window_left = edge;
          problem.kv_start = 0;
          check_plan(device, plan_with_spans(problem, 32), problem, x, reference_sdpa(problem, x));
          problem.window_left = Visibility::kUnlimited;
          problem.kv_start = edge;
          check_plan(device, plan_with_spans(problem, 32), problem, x, reference_sdpa(problem, x));
        }
      }
    }
  }
}

TEST_CASE("metal features: what changes nothing gives the bits of the plain call") {
  const Device device("metal");
  std::mt19937 rng(109);
  std::size_t n = 0;
  for (const Case& shape : kShapes) {
    for (const char* kernel : kKernels) {
      SdpaProblem plain = problem_of(shape, kDTypes[n++ % 3]);
      plain.kernel = kernel;
      SdpaOperands x = random_operands(rng, device, plain);
      const Bits want = bits_of(device, plan_with_spans(plain, 32), x);
      const auto check = [&](const char* what, const SdpaProblem& problem) {
        INFO(what, ": ", text_of(problem));
        CHECK(bits_of(device, plan_with_spans(problem, 32), x) == want);
      };
      SdpaProblem problem = plain;
      problem.window_left = 1000;
      check("a wide window", problem);
      problem = plain;
      problem.kv_starts.assign(static_cast<std::size_t>(plain.batch), 0);
      check("starts at 0", problem);
      problem.kv_starts.clear();
      problem.query_len = plain.seq_len;
      check("all rows in use", problem);
      for (const DType dtype : {DType::u8, DType::f32, DType::f16, DType::bf16}) {
        problem = plain;
        problem.mask = packed_mask(problem, dtype);
        x.mask = constant_mask(device, problem, dtype == DType::u8 ? 1 : 0);
        check("a mask that hides nothing", problem);
      }
    }
  }
}

TEST_CASE("metal features: a cut plan gives the bits of the whole one") {
  const Device device("metal");
  std::mt19937 rng(113);
  for (const char* kernel : kKernels) {
    SdpaProblem problem = problem_of({2, 4, 2, 40, 230, 240, 32, 32, true}, DType::f16);
    problem.kernel = kernel;
    problem.window_left = 150;
    problem.kv_starts = {3, 100};
    problem.query_lengths = {40, 33};
    problem.mask = packed_mask(problem, DType::u8);
    problem.sinks = HeadLayout{DType::f16};
    const SdpaOperands x = random_operands(rng, device, problem);
    const Plan whole = plan_with_spans(problem, 32);
    const Bits want = bits_of(device, whole, x);
    CHECK(worst_error(problem, x, reference_sdpa(problem, x)) <= 1.0);
    const std::array<double, 2> limits[] = {{1e-5, 1e9}, {1e-9, 1e9}, {0.5, 2e4}, {1e-5, 5e3}};
    for (const auto& [seconds, bytes] : limits) {
      MetalFacts facts;
      facts.max_dispatch_seconds = seconds;
      facts.max_state_bytes = bytes;
      const Plan plan = plan_with_spans(problem, 32, facts);
      INFO(text_of(problem), ": ", plan.steps.size(), " steps");
      CHECK(bits_of(device, plan, x) == want);
    }
  }
}

TEST_CASE("metal features: biases as low as they get are numbers, not hidden keys") {
  const Device device("metal");
  std::mt19937 rng(127);
  for (const char* kernel : kKernels) {
    for (const std::int64_t seq_len : {1, 20}) {
      SdpaProblem problem = problem_of({1, 2, 1, seq_len, 70, 70, 32, 32, false}, DType::f32);
      problem.kernel = kernel;
      problem.mask = packed_mask(problem, DType::f32);
      SdpaOperands x = random_operands(rng, device, problem);
      const float lowest = std::numeric_limits<float>::lowest();
      x.mask = constant_mask(device, problem, lowest);
      // Row 0 has nothing else: its answer is the mean of its values.
      check_plan(device, plan_with_spans(problem, 32), problem, x, reference_sdpa(problem, x));
      for (std::size_t i = 0; i < x.mask.element_count(); i += 41) set_element(x.mask, i + 1, 0.5f);
      check_plan(device, plan_with_spans(problem, 32), problem, x, reference_sdpa(problem, x));
    }
  }
}

TEST_CASE("metal features: NaN and +inf in a mask at a key in reach give NaN, elsewhere nothing") {
  const Device device("metal");
  std::mt19937 rng(131);
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const char* kernel : kKernels) {
      SdpaProblem problem = problem_of({1, 2, 1, 9, 70, 70, 32, 32, true}, DType::f16);
      problem.kernel = kernel;
      problem.mask = packed_mask(problem, DType::bf16);
      SdpaOperands x = random_operands(rng, device, problem);
      x.mask = constant_mask(device, problem, 0);
      // Key 64 is behind the first rows and in reach of the others.
      for (std::size_t row = 0; row < 18; ++row) set_element(x.mask, row * 70 + 64, value);
      run_plan(device, plan_with_spans(problem, 32), x);
      for (std::size_t row = 0; row < 18; ++row) {
        const bool in_reach = row % 9 + 61 >= 64;
        for (std::size_t d = 0; d < 32; ++d) {
          CHECK(std::isnan(get_element(x.out, row * 32 + d)) == in_reach);
        }
        CHECK(std::isnan(x.lse.host<float>()[row]) == in_reach);
      }
    }
  }
}

TEST_CASE("metal features: sinks of any size; a row without keys has its sink as lse") {
  const Device device("metal");
  std::mt19937 rng(137);
  for (const char* kernel : kKernels) {
    for (const float sink : {-std::numeric_limits<float>::infinity(), -1e30f, 0.0f, 30.0f, 3e38f}) {
      SdpaProblem problem = problem_of({1, 2, 1, 12, 100, 100, 32, 32, true}, DType::f32);
      problem.kernel = kernel;
      problem.q_start = -3;
      problem.sinks = HeadLayout{DType::f32};
      problem.window_left = 60;
      const SdpaOperands x = random_operands(rng, device, problem);
      set_element(x.sinks, 0, sink);
      check_plan(device, plan_with_spans(problem, 32), problem, x, reference_sdpa(problem, x));
      CHECK(x.lse.host<float>()[0] == sink);
      CHECK(x.lse.host<float>()[12] == get_element(x.sinks, 1));
      problem.q_start = 88;
      check_plan(device, plan_with_spans(problem, 32), problem, x, reference_sdpa(problem, x));
    }
  }
}

}  // namespace metal_sdpa::test
