// The Metal planner, which needs no device: kernels, grids, cutting.
#include <algorithm>
#include <array>
#include <cstring>

#include "metal/plan.h"
#include "metal/work_estimate.h"
#include "shaders/sdpa_args.h"
#include "shaders/sdpa_spans.h"
#include "shaders/sdpa_tiles.h"
#include "support.h"

namespace metal_sdpa::test {
namespace {

SdpaProblem problem_of(std::int64_t batch, std::int64_t heads, std::int64_t kv_heads,
                       std::int64_t seq_len, std::int64_t kv_len, std::int64_t head_dim) {
  SdpaProblem problem;
  problem.batch = batch;
  problem.n_heads = heads;
  problem.n_kv_heads = kv_heads;
  problem.seq_len = seq_len;
  problem.kv_capacity = kv_len;
  problem.kv_len = kv_len;
  problem.head_dim = head_dim;
  problem.value_dim = head_dim;
  problem.set_packed_layouts();
  return problem;
}

SdpaArgs args_of(const PlanStep& step) {
  SdpaArgs args{};
  REQUIRE(step.args.index == SDPA_BUFFER_ARGS);
  REQUIRE(step.args.bytes.size() == sizeof(args));
  std::memcpy(&args, step.args.bytes.begin(), sizeof(args));
  return args;
}

/// Spans that no cache fills.
constexpr SdpaSpanRule kOneSpan{1 << 30, 1 << 30, 1, true};

double brute_force_pairs(const SdpaProblem& p, const WorkBox& box) {
  double pairs = 0;
  for (std::int64_t b = box.batch_begin; b < box.batch_end; ++b) {
    for (std::int64_t i = box.row_begin; i < box.row_end; ++i) {
      for (std::int64_t key = 0; key < p.sequence_kv_len(b); ++key) {
        const bool in_box = box.key_begin <= key && key < box.key_end;
        if (in_box && (!p.causal || key <= p.sequence_q_start(b) + i)) pairs += 1;
      }
    }
  }
  return pairs;
}

}  // namespace

TEST_CASE("metal plan: the grid of the straightforward kernel is (B, Hq, ceil(L / 32)) x 32") {
  const auto seq_lens = {1, 31, 32, 33, 64, 65, 100};
  for (const std::int64_t seq_len : seq_lens) {
    SdpaProblem problem = problem_of(3, 8, 2, seq_len, 128, 64);
    problem.kernel = "sdpa";
    const Plan plan = plan_metal_sdpa(problem, MetalFacts{});
    REQUIRE(plan.steps.size() == 1);
    const PlanStep& step = plan.steps[0];
    CHECK(step.threadgroups.x == 3);
    CHECK(step.threadgroups.y == 8);
    CHECK(step.threadgroups.z == static_cast<std::uint32_t>((seq_len + 31) / 32));
    CHECK(step.threadgroup_size.count() == 32);
    CHECK(args_of(step).row_begin == 0);
    CHECK(args_of(step).row_end == static_cast<std::uint32_t>(seq_len));
    CHECK(std::string(step.kernel) == "sdpa");
  }
}

TEST_CASE("metal plan: the kernel follows the dtype") {
  SdpaProblem problem = problem_of(1, 2, 1, 8, 8, 16);
  problem.kernel = "sdpa";
  problem.dtype = DType::f16;
  CHECK(std::string(plan_metal_sdpa(problem, {}).steps[0].kernel) == "sdpa_f16");
  problem.dtype = DType::bf16;
  CHECK(std::string(plan_metal_sdpa(problem, {}).steps[0].kernel) == "sdpa_bf16");
}

TEST_CASE("metal plan: a kernel that does not exist is refused by name") {
  SdpaProblem problem = problem_of(1, 2, 1, 8, 8, 16);
  problem.kernel = "sdpa_nonsense";
  const auto call = [&] { plan_metal_sdpa(problem, {}); };
  CHECK(error_of(call, "sdpa_nonsense") == ErrorCode::invalid_argument);
}

TEST_CASE("metal plan: visible pairs in closed form") {
  for (const bool causal : {false, true}) {
    for (const std::int64_t start : {-40, -3, 0, 5, 29, 30, 31, 100}) {
      SdpaProblem problem = problem_of(2, 2, 1, 37, 31, 8);
      problem.causal = causal;
      problem.q_starts = {start, start + 7};
      problem.kv_lengths = {31, 0};
      const WorkBox boxes[] = {whole_work(problem),
                               {0, 1, 0, 2, 5, 9},
                               {1, 2, 0, 1, 36, 37},
                               {0, 1, 0, 2, 5, 9, 4, 11},
                               {0, 1, 0, 2, 0, 37, 30, 99}};
      for (const WorkBox& box : boxes) {
        const double heads = static_cast<double>(box.head_end - box.head_begin);
        CHECK(work_flops(problem, box) == brute_force_pairs(problem, box) * heads * 2 * 16);
      }
    }
  }
}

TEST_CASE("metal plan: cut work covers every row of every head once, in bounded pieces") {
  SdpaProblem problem = problem_of(3, 6, 2, 150, 90, 16);
  problem.causal = true;
  problem.kv_lengths = {90, 0, 17};
  const double whole = work_flops(problem, whole_work(problem));
  for (const double pieces : {0.5, 1.0, 2.0, 7.0, 40.0, 1e9}) {
    const double limit = whole / pieces;
    std::vector<int> seen(3 * 6 * 150);
    const auto fits = [&](const WorkBox& box) { return work_flops(problem, box) <= limit; };
    for (const WorkBox& box : cut_work(problem, whole_work(problem), kOneSpan, {32, 3}, fits)) {
      CHECK(box.row_begin % 32 == 0);
      CHECK(box.head_begin % 3 == 0);
      const bool unit = box.rows() <= 32 && box.sequences() == 1 && box.heads() == 3;
      CHECK((unit || fits(box)));
      for (std::int64_t b = box.batch_begin; b < box.batch_end; ++b) {
        for (std::int64_t h = box.head_begin; h < box.head_end; ++h) {
          for (std::int64_t i = box.row_begin; i < box.row_end; ++i) {
            ++seen[static_cast<std::size_t>((b * 6 + h) * 150 + i)];
          }
        }
      }
    }
    CHECK(std::count(seen.begin(), seen.end(), 1) == static_cast<std::ptrdiff_t>(seen.size()));
  }
}

TEST_CASE("metal plan: no dispatch of a long problem is above the limit") {
  SdpaProblem problem = problem_of(64, 64, 8, 4096, 131072, 128);
  problem.causal = true;
  problem.kernel = "sdpa";
  const Plan plan = plan_metal_sdpa(problem, {});
  CHECK(plan.steps.size() > 1000);
  double flops = 0;
  double largest = 0;
  bool grids_fit = true;
  for (const PlanStep& step : plan.steps) {
    if (std::string(step.kernel) == "sdpa_merge") continue;
    const SdpaArgs args = args_of(step);
    const sdpa_u32 row_blocks = (args.row_end - args.row_begin + 31) / 32;
    grids_fit = grids_fit && step.threadgroups.z == row_blocks * (args.span_end - args.span_begin);
    largest = std::max(largest, step.flops);
    flops += step.flops;
  }
  CHECK(grids_fit);
  CHECK(largest <= 1e10);  // 0.5 s at 2e10 a second
  CHECK(flops == doctest::Approx(work_flops(problem, whole_work(problem))));
}

TEST_CASE("metal plan: tile kernels follow the head dim, the dtype and the rows under a KV head") {
  struct Expected {
    std::int64_t seq_len, head_dim;
    DType dtype;
    const char* family;
    const char* kernel;
    std::uint32_t simdgroups;
  };
  const Expected cases[] = {
      {1, 128, DType::f16, "sdpa_decode", "sdpa_decode_f16_d128", 4},
      {2, 40, DType::f32, "sdpa_decode", "sdpa_decode_f32_d64", 4},
      {1, 256, DType::bf16, "sdpa_decode", "sdpa_decode_bf16_d256", 4},
      {3, 64, DType::bf16, "sdpa_prefill", "sdpa_prefill_bf16_d64", 4},
      {100, 576, DType::f32, "sdpa_prefill", "sdpa_prefill_f32_d576", 9},
      {100, 8, DType::f16, "sdpa_prefill", "sdpa_prefill_f16_d32", 4},
  };
  for (const Expected& c : cases) {
    SdpaProblem problem = problem_of(2, 8, 2, c.seq_len, 100, c.head_dim);
    problem.dtype = c.dtype;
    problem.kernel = c.family;
    const Plan plan = plan_metal_sdpa(problem, {});
    const PlanStep& step = plan.steps[0];
    CHECK(std::string(step.kernel) == c.kernel);
    CHECK(step.threadgroups.x == 2);
    CHECK(step.threadgroups.y == 2);
    CHECK(step.threadgroup_size.count() == 32u * c.simdgroups);
    CHECK(step.threadgroup_memory[0].byte_len >= 16);
    CHECK(step.threadgroup_memory[0].byte_len <= 32768);
    bool padded = false;
    for (const FunctionConstant& constant : step.constants) {
      padded = padded || constant.index == SDPA_CONSTANT_PADDED;
    }
    CHECK(padded == (c.head_dim == 40 || c.head_dim == 8));
  }
}

TEST_CASE("metal plan: wide loads where every row of q, k and v starts on 16 bytes") {
  const auto aligned = [](const SdpaProblem& problem) {
    return plan_metal_sdpa(problem, {}).steps[0].aligned_constant == SDPA_CONSTANT_ALIGNED;
  };
  SdpaProblem packed = problem_of(2, 4, 2, 3, 50, 64);
  packed.dtype = DType::f16;
  packed.kernel = "sdpa_prefill";
  CHECK(aligned(packed));
  SdpaProblem changed = packed;
  changed.v.offset = 4;
  CHECK_FALSE(aligned(changed));
  changed = packed;
  changed.k.row_stride = 68;
  CHECK_FALSE(aligned(changed));
  changed = packed;
  changed.q.batch_stride += 4;
  CHECK_FALSE(aligned(changed));
  changed.batch = 1;  // then no one goes that stride
  CHECK(aligned(changed));
  changed.kernel = "sdpa";
  CHECK_FALSE(aligned(changed));
}

TEST_CASE("metal plan: tile kernels are refused where they do not take the head dims") {
  for (const char* family : {"sdpa_decode", "sdpa_prefill"}) {
    SdpaProblem odd = problem_of(1, 2, 1, 8, 8, 12);
    odd.kernel = family;
    CHECK(error_of([&] { plan_metal_sdpa(odd, {}); }, family) == ErrorCode::invalid_argument);
    SdpaProblem uneven = problem_of(1, 2, 1, 8, 8, 16);
    uneven.value_dim = 32;
    uneven.kernel = family;
    CHECK(error_of([&] { plan_metal_sdpa(uneven, {}); }, family) == ErrorCode::invalid_argument);
  }
}

TEST_CASE("metal plan: spans have scratch of their own, are all covered, and are merged") {
  for (const std::int64_t kv_len : {0, 1, 63, 64, 65, 1000, 100000}) {
    for (const std::int64_t seq_len : {1, 2, 9}) {
      SdpaProblem problem = problem_of(3, 8, 2, seq_len, 100000, 128);
      problem.kv_len = kv_len;
      problem.return_lse = true;
      problem.kernel = seq_len < 3 ? "sdpa_decode" : "sdpa_prefill";
      const Plan plan = plan_metal_sdpa(problem, {});
      const SdpaArgs args = args_of(plan.steps[0]);
      CHECK(args.n_spans >= 1);
      CHECK(static_cast<sdpa_i64>(args.n_spans) * args.span_len >= kv_len);
      CHECK(args.n_spans <= SDPA_USUAL_SPANS);
      const bool merged = args.n_spans > 1;
      CHECK(std::string(plan.steps[plan.steps.size() - 1].kernel) ==
            (merged ? "sdpa_merge" : plan.steps[0].kernel));
      for (const PlanStep& step : plan.steps) {
        const SdpaArgs step_args = args_of(step);
        CHECK(step_args.n_spans == args.n_spans);
        if (std::string(step.kernel) == "sdpa_merge") continue;
        const std::uint64_t rows = step.threadgroups.x *
                                   (step_args.head_end - step_args.head_begin) *
                                   static_cast<std::uint64_t>(seq_len) * args.n_spans;
        CHECK(plan.scratch_bytes[0] >= (merged ? rows * 128 * 4 : 0));
        CHECK(plan.scratch_bytes[1] >= (merged ? rows * 2 * 4 : 0));
        const int teams = sdpa_tile_teams(problem.kernel == "sdpa_prefill", 4, 128);
        CHECK(teams % static_cast<int>(step_args.group_split) == 0);
        const std::uint32_t packed = (step_args.row_end - step_args.row_begin) * 4;
        const std::uint32_t row_blocks =
            (packed + 8 * step_args.group_split - 1) / (8 * step_args.group_split);
        CHECK(step.threadgroups.z == row_blocks * args.n_spans);
      }
    }
  }
}

TEST_CASE("metal plan: the teams that share a row's keys follow the whole problem, not its cuts") {
  MetalFacts facts;
  for (const std::int64_t seq_len : {3, 5, 9, 30, 60, 500}) {
    SdpaProblem problem = problem_of(2, 8, 2, seq_len, 4096, 64);
    problem.dtype = DType::f16;
    problem.kernel = "sdpa_prefill";
    const std::int64_t rows = 4 * seq_len;
    const std::uint32_t teams = rows <= 16 ? 1 : rows <= 32 ? 2 : 4;
    for (const double seconds : {1.0, 1e-9}) {
      facts.max_dispatch_seconds = seconds;
      const Plan plan = plan_metal_sdpa(problem, facts);
      CHECK((plan.steps.size() > 2) == (seconds < 1));
      for (const PlanStep& step : plan.steps) {
        if (std::string(step.kernel) == "sdpa_merge_f16") continue;
        CHECK(args_of(step).group_split == teams);
        bool shared = false;
        for (const auto& constant : step.constants) {
          shared = shared || constant.index == SDPA_CONSTANT_SHARED;
        }
        CHECK(shared == (teams < 4));
      }
    }
  }
}

TEST_CASE("metal plan: spans grow as the root of the cache, sooner without grouped queries") {
  constexpr sdpa_i64 kNone = sdpa_i64{1} << 40;
  const SdpaSpanRule grouped{256, kNone, kNone, true};
  const SdpaSpanRule alone{256, kNone, kNone, false};
  for (const sdpa_i64 kv_len : {1, 255, 4096, 8191}) CHECK(sdpa_span_keys(grouped, kv_len) == 256);
  for (const sdpa_i64 kv_len : {8192, 32767}) CHECK(sdpa_span_keys(grouped, kv_len) == 512);
  for (const sdpa_i64 kv_len : {32768, 131071}) CHECK(sdpa_span_keys(grouped, kv_len) == 1024);
  CHECK(sdpa_span_keys(alone, 2048) == 256);
  CHECK(sdpa_span_keys(alone, 2049) == 512);
  CHECK(sdpa_span_keys(alone, 16384) == 2048);
  CHECK(sdpa_span_keys(alone, 65536) == 4096);
  for (sdpa_i64 kv_len = 1; kv_len < kNone; kv_len = 3 * kv_len + 1) {
    for (const SdpaSpanRule& rule : {grouped, alone}) {
      const sdpa_i64 keys = sdpa_span_keys(rule, kv_len);
      CHECK(kv_len <= keys * SDPA_USUAL_SPANS);
      // The limit goes before the usual number, and what memory holds before the limit.
      CHECK(sdpa_span_keys({256, 2048, kNone, rule.grouped}, kv_len) ==
            std::min<sdpa_i64>(keys, 2048));
      CHECK(kv_len <= 300 * sdpa_span_keys({256, 2048, 300, rule.grouped}, kv_len));
    }
  }
}

TEST_CASE("metal plan: more queries have longer spans") {
  const auto span_len = [](std::int64_t seq_len, std::int64_t kv_len, DType dtype) {
    SdpaProblem problem = problem_of(1, 4, 1, seq_len, kv_len, 64);
    problem.dtype = dtype;
    problem.kernel = "sdpa_prefill";
    return args_of(plan_metal_sdpa(problem, {}).steps[0]).span_len;
  };
  const std::array<std::int64_t, 2> expected[] = {
      {64, 128},  {96, 128},   {97, 256},   {192, 256},  {193, 512},
      {384, 512}, {385, 1024}, {768, 1024}, {769, 2048}, {1024, 2048}};
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const auto& [seq_len, keys] : expected) {
      CHECK(span_len(seq_len, 5000, dtype) == keys);
      CHECK(span_len(seq_len, 9000, dtype) == 2 * keys);
    }
    // Rows enough: as few spans as sums allow.
    CHECK(span_len(1025, 9000, dtype) == 16384);
    CHECK(span_len(1025, 1 << 20, dtype) == 16384);
  }
}

TEST_CASE("metal plan: kernel and span do not depend on batch, capacity, strides or alignment") {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const std::int64_t seq_len : {1, 3, 40, 300}) {
      SdpaProblem one = problem_of(1, 8, 2, seq_len, 700, 128);
      one.dtype = dtype;
      one.causal = true;
      for (const char* kernel : {"", "sdpa", "sdpa_decode", "sdpa_prefill"}) {
        one.kernel = kernel;
        SdpaProblem many = problem_of(9, 16, 4, seq_len, 2000, 128);
        many.dtype = dtype;
        many.causal = true;
        many.kernel = kernel;
        many.kv_len = 700;
        many.k.offset = 3;
        many.q.row_stride += 5;
        const Plan a = plan_metal_sdpa(one, {});
        const Plan b = plan_metal_sdpa(many, {});
        CHECK(a.span_len == b.span_len);
        CHECK(std::string(a.steps[0].kernel) == b.steps[0].kernel);
        CHECK(args_of(a.steps[0]).span_len == args_of(b.steps[0]).span_len);
      }
    }
  }
}

}  // namespace metal_sdpa::test
