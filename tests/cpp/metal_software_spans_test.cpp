// Rows over many spans on Metal, on every way to the device and in every order that it may run
// dispatches: what a kernel leaves of its spans is merged only when all of it stands there.
#include <cstdint>
#include <string>
#include <vector>

#include "metal_problems.h"
#include "tests/metal/software_metal.h"

namespace metal_sdpa::test {
namespace {

constexpr std::uint64_t kSeeds = 4;

/// The smallest length that the device's plan cuts into `n_spans` spans, where some length is.
std::int64_t length_of_spans(const Device& device, SdpaProblem problem, std::int64_t n_spans) {
  for (std::int64_t length = 1; length <= 4096; ++length) {
    problem.kv_len = problem.kv_capacity = length;
    problem.set_packed_layouts();
    const std::int64_t span = plan_sdpa(device, problem).span_len;
    if ((length + span - 1) / span == n_spans) return length;
  }
  return 0;
}

/// A decode step or a chunk whose head dim is padded in the kernels' tiles.
SdpaProblem spanned_problem(const Device& device, DType dtype, std::int64_t seq_len,
                            std::int64_t head_dim, std::int64_t n_spans) {
  SdpaProblem problem =
      problem_of({1, 2, 1, seq_len, 1, 1, head_dim, head_dim, /*causal=*/true}, dtype);
  const std::int64_t length = length_of_spans(device, problem, n_spans);
  REQUIRE(length > 0);
  problem.kv_len = length;
  problem.kv_capacity = length + 3;
  problem.set_packed_layouts();
  return problem;
}

struct Written {
  std::vector<std::uint8_t> out;
  std::vector<std::uint8_t> lse;
  bool operator==(const Written&) const = default;
};

Written written(const SdpaOperands& x) { return {bytes_of(x.out), bytes_of(x.lse)}; }

void poison(const SdpaOperands& x) {
  fill_bytes(x.out, 0xff);
  fill_bytes(x.lse, 0xff);
}

Written called(const Device& device, const SdpaOperands& x, const SdpaProblem& problem) {
  poison(x);
  sdpa(device, x, problem);
  return written(x);
}

Written encoded(const Device& device, const SdpaOperands& x, const SdpaProblem& problem) {
  poison(x);
  CommandEncoder encoder(device);
  encode_sdpa(encoder, default_registry(device), device, x, problem);
  encoder.commit_and_wait();
  return written(x);
}

Written replayed(const Device& device, const SdpaOperands& x, const SdpaProblem& problem) {
  CommandEncoder recorder(device);
  recorder.begin_capture();
  encode_sdpa(recorder, default_registry(device), device, x, problem);
  const Graph graph = recorder.end_capture();
  poison(x);
  CommandEncoder encoder(device);
  graph.replay(encoder);
  encoder.commit_and_wait();
  return written(x);
}

struct Seeds {
  ~Seeds() { software_metal_reset(); }
};

}  // namespace

TEST_CASE(
    "software metal: many spans have the same bits in every order, called, encoded, replayed") {
  const Seeds reset;
  const Device device("metal");
  std::mt19937 rng(61);
  for (const std::int64_t seq_len : {1, 9}) {
    for (const std::int64_t n_spans : {2, 3}) {
      const DType dtype = kDTypes[(seq_len + n_spans) % 3];
      const SdpaProblem problem = spanned_problem(device, dtype, seq_len, 40, n_spans);
      const SdpaOperands x = random_operands(rng, device, problem);
      const Written expected = called(device, x, problem);
      CHECK(worst_error(problem, x, reference_sdpa(problem, x)) <= 1.0);
      for (std::uint64_t seed = 2; seed <= kSeeds; ++seed) {
        CAPTURE(seq_len);
        CAPTURE(n_spans);
        CAPTURE(seed);
        software_metal_set_seed(seed);
        CHECK(encoded(device, x, problem) == expected);
        CHECK(replayed(device, x, problem) == expected);
      }
    }
  }
}

TEST_CASE("software metal: a recorded decode replays at every number of spans, also back again") {
  const Seeds reset;
  const Device device("metal");
  std::mt19937 rng(62);
  SdpaProblem problem = spanned_problem(device, DType::f16, 1, 40, 4);
  problem.return_lse = false;
  const std::int64_t longest = problem.kv_len;
  const std::int64_t two = spanned_problem(device, DType::f16, 1, 40, 2).kv_len;
  const std::int64_t three = spanned_problem(device, DType::f16, 1, 40, 3).kv_len;
  const SdpaOperands x = random_operands(rng, device, problem);
  CommandEncoder recorder(device);
  recorder.begin_capture();
  problem.kv_len = two - 1;
  encode_sdpa(recorder, default_registry(device), device, x, problem);
  Graph graph = recorder.end_capture();
  std::uint64_t seed = 1;
  for (const std::int64_t length : {two, three, longest, two - 1, longest}) {
    CAPTURE(length);
    software_metal_set_seed(seed++);
    problem.kv_len = length;
    sdpa(device, x, problem);
    const std::vector<std::uint8_t> expected = bytes_of(x.out);
    CHECK(worst_error(problem, x, reference_sdpa(problem, x)) <= 1.0);
    fill_bytes(x.out, 0xff);
    graph.update(0, length);
    CommandEncoder encoder(device);
    graph.replay(encoder);
    encoder.commit_and_wait();
    CHECK(bytes_of(x.out) == expected);
  }
}

TEST_CASE("software metal: sequences whose spans differ in number and length") {
  const Seeds reset;
  const Device device("metal");
  std::mt19937 rng(63);
  // Spans of ungrouped queries grow with the sequence: those of the longest are not the others'.
  const std::vector<std::int64_t> lengths{129, 1030, 0, 600};
  SdpaProblem problem = problem_of({4, 1, 1, 1, 1030, 1033, 104, 104, true}, DType::f32);
  const auto span_of = [&](std::int64_t length) {
    SdpaProblem alone = problem;
    alone.kv_len = length;
    return plan_sdpa(device, alone).span_len;
  };
  REQUIRE(span_of(1030) != span_of(600));
  REQUIRE(span_of(129) < 129);
  problem.kv_lengths = lengths;
  const SdpaOperands x = random_operands(rng, device, problem);
  const Written expected = called(device, x, problem);
  CHECK(worst_error(problem, x, reference_sdpa(problem, x)) <= 1.0);
  for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) {
    CAPTURE(seed);
    software_metal_set_seed(seed);
    CHECK(encoded(device, x, problem) == expected);
    CHECK(replayed(device, x, problem) == expected);
  }
}

TEST_CASE("software metal: cut over keys, the merge waits for every cut") {
  const Seeds reset;
  const Device device("metal");
  std::mt19937 rng(64);
  SdpaProblem problem = spanned_problem(device, DType::f32, 9, 40, 3);
  problem.kernel = "sdpa_prefill";
  const SdpaOperands x = random_operands(rng, device, problem);
  const Written expected = called(device, x, problem);
  MetalFacts facts;
  facts.max_dispatch_seconds = 1e-9;
  const Plan plan = plan_metal_sdpa(problem, facts);
  CHECK(plan.steps.size() > 4);
  for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) {
    CAPTURE(seed);
    software_metal_set_seed(seed);
    poison(x);
    run_plan(device, plan, x);
    CHECK(written(x) == expected);
  }
}

}  // namespace metal_sdpa::test
