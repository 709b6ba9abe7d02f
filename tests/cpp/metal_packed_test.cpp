// Packed sequences, and sequences with rows of their own number, on Metal: the bits that each has
// alone, whatever stands before and behind it.
#include <array>

#include "joint_batch.h"
#include "metal_problems.h"

namespace metal_sdpa::test {
namespace {

constexpr std::array<const char*, 4> kKernels{"", "sdpa", "sdpa_decode", "sdpa_prefill"};

/// Decode rows, chunks and prompts; none, few and many keys.
const std::vector<SequenceLengths> kMixed{{1, 290}, {5, 77}, {0, 20}, {40, 40}, {1, 1},
                                          {3, 0},   {2, 9},  {4, 64}, {70, 150}};

SdpaProblem shared_problem(DType dtype, std::int64_t head_dim, std::int64_t value_dim) {
  SdpaProblem p;
  p.dtype = dtype;
  p.n_heads = 4;
  p.n_kv_heads = 2;
  p.head_dim = head_dim;
  p.value_dim = value_dim;
  p.causal = true;
  p.scale = 0.3f;
  return p;
}

Plan plan_of(const SdpaProblem& problem, MetalFacts facts = {}) {
  facts.apple_family = 7;
  return plan_metal_sdpa(problem, facts);
}

/// Attends each sequence alone, and checks that against float64.
void attend_alone(const Device& device, const std::string& kernel,
                  std::vector<LoneSequence>& sequences) {
  for (LoneSequence& one : sequences) {
    one.problem.kernel = kernel;
    run_plan(device, plan_of(one.problem), one.operands);
    INFO(kernel, " rows ", one.problem.seq_len, " keys ", one.problem.kv_len);
    CHECK(worst_error(one.problem, one.operands, reference_sdpa(one.problem, one.operands)) <= 1.0);
  }
}

/// Every way of putting the sequences together gives their bits.
void check_joint(const Device& device, std::mt19937& rng, const SdpaProblem& shared,
                 const std::vector<SequenceLengths>& lengths, const JointLayout& layout,
                 const std::string& kernel) {
  std::vector<LoneSequence> sequences = lone_sequences(rng, device, shared, lengths);
  JointBatch joint = joint_batch(rng, device, layout, sequences);
  attend_alone(device, kernel, sequences);
  joint.problem.kernel = kernel;
  validate_problem(joint.problem, device.limits(), "test");
  fill_outputs(joint.operands);
  run_plan(device, plan_of(joint.problem), joint.operands);
  INFO(kernel, " ", std::string(dtype_name(shared.dtype)), " D ", shared.head_dim, " packed ",
       layout.packed_queries, " keys ", static_cast<int>(layout.keys), " NHD ",
       layout.heads_inside);
  CHECK(has_lone_bits(joint, sequences));
}

}  // namespace

TEST_CASE("metal packed: each sequence has the bits that it has alone") {
  const Device device("metal");
  std::mt19937 rng(211);
  std::size_t n = 0;
  for (const auto& [head_dim, value_dim] :
       std::array<std::array<std::int64_t, 2>, 4>{{{64, 64}, {20, 12}, {128, 128}, {40, 40}}}) {
    for (const char* kernel : kKernels) {
      const bool tiles = std::string(kernel) != "sdpa" && *kernel != '\0';
      if (tiles && head_dim != value_dim) continue;
      JointLayout layout;
      layout.heads_inside = n % 2 == 0;
      layout.aligned_to = n % 4 < 2 ? 8 : 1;
      layout.keys = n % 5 == 3 ? KeyPlaces::dense : KeyPlaces::packed;
      check_joint(device, rng, shared_problem(kDTypes[n % 3], head_dim, value_dim), kMixed, layout,
                  kernel);
      ++n;
    }
  }
}

TEST_CASE("metal packed: dense sequences with rows of their own number have the bits of so many") {
  const Device device("metal");
  std::mt19937 rng(223);
  std::size_t n = 0;
  for (const std::int64_t head_dim : {64, 20, 256}) {
    for (const char* kernel : {"", "sdpa"}) {
      JointLayout layout;
      layout.packed_queries = false;
      layout.keys = n % 2 == 0 ? KeyPlaces::dense : KeyPlaces::packed;
      check_joint(device, rng, shared_problem(kDTypes[n++ % 3], head_dim, head_dim), kMixed, layout,
                  kernel);
    }
  }
}

TEST_CASE("metal packed: spans and teams are those of a sequence's own rows") {
  const Device device("metal");
  std::mt19937 rng(233);
  // Of as many keys, by few rows and by more than short spans are made for.
  const std::vector<SequenceLengths> lengths{{100, 280}, {12, 280}, {40, 280}, {6, 280}};
  for (const std::int64_t head_dim : {32, 12}) {
    for (const bool is_packed : {true, false}) {
      JointLayout layout;
      layout.packed_queries = is_packed;
      check_joint(device, rng, shared_problem(DType::f32, head_dim, head_dim), lengths, layout, "");
    }
  }
}

TEST_CASE("metal packed: with masks, slopes, sinks, windows and starts") {
  const Device device("metal");
  std::mt19937 rng(227);
  std::vector<SequenceLengths> lengths = kMixed;
  for (std::size_t n = 0; n < 12; ++n) {
    SdpaProblem shared = shared_problem(kDTypes[n % 3], n % 4 == 3 ? 24 : 64, 64);
    if (shared.head_dim != 64) shared.value_dim = 8;
    if (n % 2 == 0) shared.mask = MaskLayout{n % 4 == 0 ? DType::u8 : DType::bf16};
    if (n % 3 == 0) shared.sinks = HeadLayout{DType::f32};
    if (n % 3 == 1) shared.alibi_slopes = HeadLayout{DType::f32};
    if (n % 4 == 1) shared.window_left = 30;
    if (n % 5 == 0) shared.softcap = 20;
    shared.out_f32 = n % 6 == 5;
    for (std::size_t b = 0; b < lengths.size(); ++b) {
      lengths[b].kv_start = n % 3 == 2 ? static_cast<std::int64_t>(7 * b) : 0;
    }
    JointLayout layout;
    layout.packed_queries = n % 4 != 2;
    check_joint(device, rng, shared, lengths, layout, "");
  }
}

TEST_CASE("metal packed: a cut plan gives the bits of the whole one") {
  const Device device("metal");
  std::mt19937 rng(229);
  for (const std::int64_t head_dim : {32, 12}) {
    std::vector<LoneSequence> sequences =
        lone_sequences(rng, device, shared_problem(DType::f16, head_dim, head_dim),
                       {{1, 300}, {40, 200}, {33, 170}, {9, 9}, {1, 600}});
    const JointBatch joint = joint_batch(rng, device, JointLayout{}, sequences);
    attend_alone(device, "", sequences);
    const std::array<double, 2> limits[] = {
        {100, 1e9}, {1e-5, 1e9}, {1e-9, 1e9}, {0.5, 2e4}, {1e-5, 5e3}};
    for (const auto& [seconds, bytes] : limits) {
      MetalFacts facts;
      facts.max_dispatch_seconds = seconds;
      facts.max_state_bytes = bytes;
      const Plan plan = plan_of(joint.problem, facts);
      fill_outputs(joint.operands);
      run_plan(device, plan, joint.operands);
      INFO(plan.steps.size(), " steps");
      CHECK(has_lone_bits(joint, sequences));
    }
  }
}

TEST_CASE("metal packed: a prompt and single rows are parts of their own") {
  SdpaProblem p = shared_problem(DType::f16, 64, 64);
  p.batch = 4;
  p.seq_len = p.kv_capacity = p.kv_len = 300;
  p.kv_lengths = {300, 40, 41, 300};
  p.query_lengths = {300, 1, 2, 0};
  p.q_rows = {0, 300, 301, 303};
  p.q_total = 303;
  p.kv_rows = {0, 300, 340, 400};
  p.kv_total = 700;
  p.set_packed_layouts();
  const Plan plan = plan_of(p);
  std::vector<std::string> kernels;
  for (const PlanStep& step : plan.steps) kernels.emplace_back(step.kernel);
  CHECK(std::find(kernels.begin(), kernels.end(), "sdpa_prefill_f16_d64") != kernels.end());
  CHECK(std::find(kernels.begin(), kernels.end(), "sdpa_decode_f16_d64") != kernels.end());
  for (const PlanStep& step : plan.steps) {
    if (std::string(step.kernel) != "sdpa_decode_f16_d64") continue;
    CHECK(step.threadgroups.y == 2);  // neither the prompt nor the sequence without rows
    CHECK(step.threadgroups.z == 1);
  }
  p.query_lengths = {0, 0, 0, 0};
  CHECK(plan_of(p).steps.empty());
}

}  // namespace metal_sdpa::test
