// K and V in pages, on Metal: the bits of the dense call on each sequence alone.
#include <algorithm>
#include <array>
#include <limits>

#include "core/band.h"
#include "joint_batch.h"
#include "metal_problems.h"

namespace metal_sdpa::test {
namespace {

/// Decode rows, chunks and prompts.
const std::vector<SequenceLengths> kMixed{{1, 290}, {6, 77}, {40, 40}, {1, 1},
                                          {2, 0},   {1, 17}, {3, 64},  {50, 130}};

SdpaProblem shared_problem(DType dtype, std::int64_t head_dim) {
  SdpaProblem p;
  p.dtype = dtype;
  p.n_heads = 4;
  p.n_kv_heads = 2;
  p.head_dim = p.value_dim = head_dim;
  p.causal = true;
  p.scale = 0.3f;
  return p;
}

Plan plan_of(const SdpaProblem& problem) {
  MetalFacts facts;
  facts.apple_family = 7;
  return plan_metal_sdpa(problem, facts);
}

void check_paged(const Device& device, std::mt19937& rng, const SdpaProblem& shared,
                 const std::vector<SequenceLengths>& lengths, JointLayout layout,
                 const std::string& kernel = "") {
  layout.keys = KeyPlaces::paged;
  std::vector<LoneSequence> sequences = lone_sequences(rng, device, shared, lengths);
  JointBatch joint = joint_batch(rng, device, layout, sequences);
  for (LoneSequence& one : sequences) {
    one.problem.kernel = kernel;
    run_plan(device, plan_of(one.problem), one.operands);
    CHECK(worst_error(one.problem, one.operands, reference_sdpa(one.problem, one.operands)) <= 1.0);
  }
  joint.problem.kernel = kernel;
  validate_problem(joint.problem, device.limits(), "test");
  fill_outputs(joint.operands);
  run_plan(device, plan_of(joint.problem), joint.operands);
  INFO(kernel, " ", std::string(dtype_name(shared.dtype)), " D ", shared.head_dim, " page ",
       layout.page_len, " packed ", layout.packed_queries, " NHD ", layout.heads_inside, " one ",
       layout.one_tensor);
  CHECK(has_lone_bits(joint, sequences));
}

JointLayout random_layout(std::size_t n) {
  JointLayout layout;
  layout.packed_queries = n % 3 != 1;
  layout.heads_inside = n % 2 == 0;
  layout.table_dtype = n % 4 < 2 ? DType::i32 : DType::i64;
  layout.table_of_starts = n % 5 == 2;
  layout.one_tensor = n % 3 == 2;
  layout.aligned_to = n % 2 == 0 ? 8 : 1;
  return layout;
}

}  // namespace

TEST_CASE("metal paged: pages of any length") {
  const Device device("metal");
  std::mt19937 rng(307);
  std::size_t n = 0;
  for (const std::int64_t page_len : {1, 3, 8, 16, 24, 64, 96, 500}) {
    for (const std::int64_t head_dim : {64, 128, 20, 256}) {
      JointLayout layout = random_layout(n);
      layout.page_len = page_len;
      check_paged(device, rng, shared_problem(kDTypes[n / 2 % 3], head_dim), kMixed, layout);
      ++n;
    }
  }
}

TEST_CASE("metal paged: every kernel") {
  const Device device("metal");
  std::mt19937 rng(311);
  std::size_t n = 0;
  for (const char* kernel : {"sdpa", "sdpa_decode", "sdpa_prefill"}) {
    for (const DType dtype : kDTypes) {
      for (const std::int64_t page_len : {5, 16, 32}) {
        JointLayout layout = random_layout(n++);
        layout.page_len = page_len;
        check_paged(device, rng, shared_problem(dtype, 64), {{1, 70}, {9, 100}, {20, 33}}, layout,
                    kernel);
      }
    }
  }
}

TEST_CASE("metal paged: pages that sequences share") {
  const Device device("metal");
  std::mt19937 rng(313);
  for (const std::int64_t page_len : {4, 32}) {
    JointLayout layout;
    layout.page_len = page_len;
    layout.shared_pages = 64 / page_len;
    check_paged(device, rng, shared_problem(DType::f16, 64),
                {{1, 120}, {1, 80}, {20, 90}, {2, 64}, {1, 30}}, layout);
  }
}

TEST_CASE("metal paged: with windows and starts that leave first pages dead, and all else") {
  const Device device("metal");
  std::mt19937 rng(317);
  std::vector<SequenceLengths> lengths = kMixed;
  for (std::size_t n = 0; n < 18; ++n) {
    SdpaProblem shared = shared_problem(kDTypes[n % 3], n % 4 == 3 ? 12 : 64);
    if (n % 2 == 0) shared.window_left = n % 4 == 0 ? 20 : 75;
    if (n % 3 == 0) shared.mask = MaskLayout{n % 2 == 0 ? DType::u8 : DType::f32};
    if (n % 5 == 1) shared.sinks = HeadLayout{DType::f32};
    if (n % 5 == 2) shared.alibi_slopes = HeadLayout{DType::f32};
    if (n % 7 == 0) shared.softcap = 20;
    for (std::size_t b = 0; b < lengths.size(); ++b) {
      lengths[b].kv_start = n % 3 == 1 ? static_cast<std::int64_t>(19 * b % 100) : 0;
    }
    JointLayout layout = random_layout(n);
    layout.page_len = std::array<std::int64_t, 4>{16, 7, 32, 1}[n % 4];
    check_paged(device, rng, shared, lengths, layout);
  }
}

TEST_CASE("metal paged: as a device runs it, and an entry that names no page is refused") {
  const Device device("metal");
  std::mt19937 rng(337);
  JointLayout layout;
  layout.keys = KeyPlaces::paged;
  std::vector<LoneSequence> sequences =
      lone_sequences(rng, device, shared_problem(DType::f16, 64), kMixed);
  JointBatch joint = joint_batch(rng, device, layout, sequences);
  for (const LoneSequence& one : sequences) sdpa(device, one.operands, one.problem);
  fill_outputs(joint.operands);
  sdpa(device, joint.operands, joint.problem);
  CHECK(has_lone_bits(joint, sequences));

  const auto third = static_cast<std::size_t>(first_entry(*joint.problem.pages, 2) +
                                              joint.problem.pages->entry_stride);
  fill_outputs(joint.operands);
  const std::vector<std::uint8_t> untouched = bytes_of(joint.operands.out);
  joint.operands.block_table.host<std::int32_t>()[third] =
      static_cast<std::int32_t>(joint.problem.pages->n_pages);
  CHECK(error_of([&] { sdpa(device, joint.operands, joint.problem); }, "block_table") ==
        ErrorCode::invalid_argument);
  CHECK(bytes_of(joint.operands.out) == untouched);
}

TEST_CASE("metal paged: what reads keys reads the table, merges do not") {
  const Device device("metal");
  std::mt19937 rng(347);
  JointLayout layout;
  layout.keys = KeyPlaces::paged;
  std::vector<LoneSequence> sequences =
      lone_sequences(rng, device, shared_problem(DType::f16, 64), kMixed);
  const Plan plan = plan_of(joint_batch(rng, device, layout, sequences).problem);
  std::size_t merges = 0;
  for (const PlanStep& step : plan.steps) {
    const bool is_merge = std::string(step.kernel).rfind("sdpa_merge", 0) == 0;
    merges += is_merge ? 1 : 0;
    const bool reads_table = std::any_of(
        step.reads.begin(), step.reads.end(),
        [](const PlanRange& range) { return range.operand == PlanOperand::block_table; });
    CHECK(reads_table == !is_merge);
  }
  CHECK(merges > 0);
}

TEST_CASE("metal paged: infinite values that rows see are put right by the table too") {
  const Device device("metal");
  std::mt19937 rng(331);
  for (const std::int64_t page_len : {3, 16}) {
    for (const std::int64_t head_dim : {64, 12, 256}) {
      const SdpaProblem shared = shared_problem(DType::f32, head_dim);
      std::vector<LoneSequence> sequences =
          lone_sequences(rng, device, shared, {{1, 60}, {12, 70}, {5, 300}});
      for (const LoneSequence& one : sequences) {
        for (const std::int64_t back : {2, 20}) {
          const auto row = static_cast<std::size_t>((one.problem.kv_len - back) * head_dim);
          set_element(one.operands.v, row + 3, std::numeric_limits<float>::infinity());
        }
      }
      JointLayout layout;
      layout.keys = KeyPlaces::paged;
      layout.page_len = page_len;
      JointBatch joint = joint_batch(rng, device, layout, sequences);
      for (const LoneSequence& one : sequences) {
        run_plan(device, plan_of(one.problem), one.operands);
        const auto last = static_cast<std::size_t>((one.problem.seq_len - 1) * head_dim);
        CHECK(get_element(one.operands.out, last + 3) == std::numeric_limits<float>::infinity());
      }
      fill_outputs(joint.operands);
      run_plan(device, plan_of(joint.problem), joint.operands);
      INFO("page ", page_len, " D ", head_dim);
      CHECK(has_lone_bits(joint, sequences));
    }
  }
}

}  // namespace metal_sdpa::test
