// Attention on Metal: against the float64 oracle and the CPU, cut plans, the packed form.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "metal/plan.h"
#include "metal_problems.h"
#include "metal_support.h"
#include "oracle.h"
#include "problems.h"
#include "shaders/sdpa_args.h"
#include "shaders/sdpa_spans.h"

namespace metal_sdpa::test {
namespace {

// Around the edges of the 32-row and the 16-key tile, odd head dims, grouped and single heads,
// queries that see no key, one key, more queries than keys. Small: emulated Metal runs them too.
constexpr Case kCases[] = {
    {1, 1, 1, 1, 1, 1, 1, 1, false},        {1, 2, 2, 31, 15, 15, 8, 8, true},
    {1, 2, 1, 32, 16, 16, 16, 16, true},    {2, 4, 2, 33, 17, 20, 33, 33, true},
    {1, 4, 1, 5, 65, 70, 64, 64, true},     {1, 8, 2, 1, 130, 131, 64, 64, false},
    {1, 3, 3, 65, 33, 40, 24, 24, true},    {2, 2, 1, 7, 48, 48, 80, 40, false},
    {1, 2, 2, 3, 20, 20, 576, 576, true},   {1, 2, 1, 40, 5, 9, 12, 20, true},
    {1, 4, 2, 2, 200, 200, 128, 128, true}, {1, 2, 1, 40, 90, 96, 256, 256, false},
};

/// log2 of what a state's weights are in units of: a whole number, or the largest score itself.
double exponent_of(float reference) {
  const double exponent = static_cast<double>(reference) / std::log(2.0);
  return std::fabs(reference) <= 0x1p20f ? std::round(exponent) : exponent;
}

/// Merges random states and returns how many numbers are wrong; their references are around
/// `middle`. Row i of 24 sees the keys up to
/// some 22 before the last and i more, so that the last rows see all n_spans spans.
int wrong_merges(std::uint32_t n_spans, std::uint32_t width, float middle) {
  const Device device("metal");
  const KernelRegistry registry(device);
  constexpr std::uint32_t kRows = 24, kSpanLen = 3;
  const std::uint32_t kv_len = n_spans * kSpanLen - 2;
  SdpaArgs args{};
  args.n_heads = args.head_end = args.n_kv_heads = args.batch = 1;
  args.seq_len = args.row_end = kRows;
  args.value_dim = width;
  args.out_stride.row = width;
  args.span_len = kSpanLen;
  args.n_spans = n_spans;
  args.window = {-1, 0, 0, 1};
  args.sequence = {kv_len - 23, kv_len, 0, 1 << 20, 0, 0};
  std::mt19937 rng(23);
  const Buffer partial_o = device.empty({kRows, n_spans, width}, DType::f32);
  const Buffer partial_ms = device.empty({kRows, n_spans, 2}, DType::f32);
  const Buffer out = device.empty({kRows, width}, DType::f32);
  const Buffer lse = device.empty({kRows}, DType::f32);
  fill_normal(partial_o, rng, 1);
  fill_normal(partial_ms, rng, 3);
  float* const ms = partial_ms.host<float>();
  for (std::uint32_t i = 0; i < kRows * n_spans; ++i) {
    const float whole = std::round(ms[2 * i]);
    ms[2 * i] = middle == 0 ? whole * std::log(2.0f) : middle + whole;
    ms[2 * i + 1] = 1 + std::fabs(ms[2 * i + 1]);
  }
  const auto spans_of = [&](std::uint32_t row) {
    return (std::min(kv_len - 22 + row, kv_len) + kSpanLen - 1) / kSpanLen;
  };
  for (std::uint32_t row = 0; row < kRows; ++row) {
    for (std::uint32_t s = spans_of(row); s < n_spans; ++s) ms[(row * n_spans + s) * 2] = NAN;
  }
  DispatchOptions options;
  options.threadgroup_memory = {{0, SDPA_MERGE_BYTES}};
  const std::uint32_t column_blocks = (width + SDPA_MERGE_COLUMNS - 1) / SDPA_MERGE_COLUMNS;
  const auto simdgroups =
      static_cast<std::uint32_t>(sdpa_merge_simdgroups(static_cast<int>(n_spans)));
  CommandEncoder encoder = device.command_encoder();
  encoder.encode_threadgroups(plan_pipeline(registry, "sdpa_merge", {{SDPA_CONSTANT_LSE, true}}),
                              {{SDPA_BUFFER_OUT, out},
                               {SDPA_BUFFER_ARGS, inline_bytes(args)},
                               {SDPA_BUFFER_LSE, lse},
                               {SDPA_BUFFER_PARTIAL_O, partial_o},
                               {SDPA_BUFFER_PARTIAL_MS, partial_ms}},
                              {1, 1, kRows * column_blocks}, {32 * simdgroups, 1, 1}, options);
  encoder.commit_and_wait();
  // A few roundings of values of size 1 to 10; a NaN is no success.
  const auto close = [](double a, double b) {
    return std::fabs(a - b) < 4e-6 + 1e-7 * std::fabs(b);
  };
  int wrong = 0;
  for (std::uint32_t row = 0; row < kRows; ++row) {
    double sum = 0;
    std::vector<double> numerators(width);
    for (std::uint32_t s = 0; s < spans_of(row); ++s) {
      const std::uint32_t at = row * n_spans + s;
      const double weight = std::exp2(exponent_of(ms[2 * at]) - exponent_of(middle));
      sum += weight * static_cast<double>(ms[2 * at + 1]);
      for (std::uint32_t d = 0; d < width; ++d) {
        numerators[d] += weight * static_cast<double>(partial_o.host<float>()[at * width + d]);
      }
    }
    for (std::uint32_t d = 0; d < width; ++d) {
      if (!close(out.host<float>()[row * width + d], numerators[d] / sum)) ++wrong;
    }
    if (!close(lse.host<float>()[row], std::log(sum) + static_cast<double>(middle))) ++wrong;
  }
  return wrong;
}

}  // namespace

TEST_CASE("metal attention: within the bounds of float64, as the CPU is") {
  const Device metal("metal");
  const Device cpu("cpu");
  std::mt19937 rng(7);
  for (const Case& c : kCases) {
    for (const DType dtype : kDTypes) {
      SdpaProblem problem = problem_of(c, dtype);
      const SdpaOperands x = random_operands(rng, metal, problem);
      const Reference reference = reference_sdpa(problem, x);
      const SdpaOperands on_cpu = copied(cpu, x, true);
      sdpa(cpu, on_cpu, problem);
      CHECK(worst_error(problem, on_cpu, reference) <= 1.0);
      for (const std::string& kernel : kernels_for(metal, problem)) {
        problem.kernel = kernel;
        fill_bytes(x.out, 0xff);
        fill_bytes(x.lse, 0xff);
        sdpa(metal, x, problem);
        INFO(kernel, " ", std::string(dtype_name(dtype)), " L ", c.seq_len, " kv ", c.kv_len, " D ",
             c.head_dim);
        CHECK(worst_error(problem, x, reference) <= 1.0);
      }
    }
  }
}

TEST_CASE("metal attention: rows that hang on one element of one key") {
  const Device device("metal");
  std::mt19937 rng(37);
  std::uniform_real_distribution<float> exponent(-8, 8);
  for (const DType dtype : kDTypes) {
    for (const std::int64_t seq_len : {1, 2, 33, 64, 65, 66}) {
      const SdpaProblem problem = problem_of({1, 4, 2, seq_len, 33, 40, 8, 8, false}, dtype);
      const SdpaOperands x = random_operands(rng, device, problem);
      for (std::size_t i = 0; i < 2 * 40 * 8; ++i) {
        set_element(x.v, i, get_element(x.v, i) * std::exp2(exponent(rng)));
      }
      check_every_kernel(device, problem, x);
    }
  }
}

TEST_CASE("metal attention: what stands past the last key never shows") {
  const Device device("metal");
  std::mt19937 rng(29);
  for (const DType dtype : kDTypes) {
    for (const std::int64_t kv_len : {1, 7, 9, 31, 33}) {
      SdpaProblem problem = problem_of({1, 2, 1, 2, kv_len, 40, 32, 32, false}, dtype);
      const SdpaOperands x = random_operands(rng, device, problem);
      for (const Buffer& cache : {x.k, x.v}) {
        const std::size_t row = 32 * dtype_size(dtype);
        std::memset(static_cast<char*>(cache.data()) + static_cast<std::size_t>(kv_len) * row, 0xff,
                    static_cast<std::size_t>(40 - kv_len) * row);  // NaN in every dtype
      }
      check_every_kernel(device, problem, x);
    }
  }
}

TEST_CASE("metal attention: an infinite value of the last key is no NaN") {
  const Device device("metal");
  for (const DType dtype : {DType::f16, DType::bf16}) {
    for (const std::int64_t kv_len : {1, 7, 9, 31, 33}) {
      SdpaProblem problem = problem_of({1, 2, 1, 2, kv_len, 40, 32, 32, false}, dtype);
      std::mt19937 rng(31);
      const SdpaOperands x = random_operands(rng, device, problem);
      fill_bytes(x.q, 0);  // every visible key weighs the same, every other one nothing
      const std::uint16_t infinity = dtype == DType::f16 ? 0x7c00 : 0x7f80;
      x.v.host<std::uint16_t>()[(kv_len - 1) * 32 + 5] = infinity;
      for (const std::string& kernel : kernels_for(device, problem)) {
        problem.kernel = kernel;
        sdpa(device, x, problem);
        INFO(kernel, " ", std::string(dtype_name(dtype)), " kv ", kv_len);
        for (std::size_t row = 0; row < 4; ++row) {
          CHECK(x.out.host<std::uint16_t>()[row * 32 + 5] == infinity);
        }
      }
    }
  }
}

TEST_CASE("metal attention: many queries over many spans, around every edge of both") {
  const Device device("metal");
  std::mt19937 rng(41);
  // Spans have 128 keys up to 96 queries, 256 up to 192, then 512.
  const std::array<std::int64_t, 2> shapes[] = {{65, 128}, {65, 129},  {70, 515},
                                                {97, 513}, {192, 511}, {193, 513}};
  for (const auto& [seq_len, kv_len] : shapes) {
    for (const DType dtype : kDTypes) {
      for (const bool causal : {false, true}) {
        const SdpaProblem problem =
            problem_of({1, 3, 1, seq_len, kv_len, kv_len + 3, 32, 32, causal}, dtype);
        check_every_kernel(device, problem, random_operands(rng, device, problem));
      }
    }
  }
}

TEST_CASE("metal attention: a cut plan gives the bits of the whole one") {
  const Device device("metal");
  std::mt19937 rng(11);
  struct Cut {
    Case shape;
    std::vector<std::int64_t> kv_lengths;
  };
  // Groups that do and do not divide a tile, one span and several, lengths of their own.
  const Cut cuts[] = {{{3, 4, 2, 100, 120, 130, 32, 32, true}, {120, 1, 64}},
                      {{2, 3, 1, 70, 600, 600, 32, 32, true}, {}},
                      {{3, 3, 1, 20, 700, 700, 32, 32, false}, {5, 700, 300}}};
  for (const Cut& cut : cuts) {
    SdpaProblem problem = problem_of(cut.shape, DType::f16);
    problem.kv_lengths = cut.kv_lengths;
    const SdpaOperands x = random_operands(rng, device, problem);
    for (const std::string& kernel : kernels_for(device, problem)) {
      problem.kernel = kernel;
      sdpa(device, x, problem);
      const auto out = bytes_of(x.out);
      const auto lse = bytes_of(x.lse);
      const std::array<double, 2> limits[] = {{1e-4, 1e9}, {1e-9, 1e9}, {0.5, 5e4}, {1e-4, 2e4}};
      for (const auto& [seconds, bytes] : limits) {
        MetalFacts facts;
        facts.max_dispatch_seconds = seconds;
        facts.max_state_bytes = bytes;
        const Plan plan = plan_metal_sdpa(problem, facts);
        INFO(kernel, ": ", plan.steps.size(), " steps");
        fill_bytes(x.out, 0xff);
        fill_bytes(x.lse, 0xff);
        run_plan(device, plan, x);
        CHECK(bytes_of(x.out) == out);
        CHECK(bytes_of(x.lse) == lse);
      }
    }
  }
}

TEST_CASE("metal attention: a sequence has the same bits alone and in a batch") {
  const Device device("metal");
  std::mt19937 rng(13);
  const DType dtype = DType::bf16;
  for (const std::int64_t seq_len : {1, 5, 70}) {
    SdpaProblem batch = problem_of({3, 4, 2, seq_len, 900, 910, 32, 32, true}, dtype);
    batch.kv_lengths = {3, 900, 777};
    const SdpaOperands x = random_operands(rng, device, batch);
    SdpaProblem one = problem_of({1, 4, 2, seq_len, 777, 910, 32, 32, true}, dtype);
    for (const std::string& kernel : kernels_for(device, batch)) {
      batch.kernel = one.kernel = kernel;
      sdpa(device, x, batch);
      const auto last_of = [](const Buffer& buffer) {
        const std::size_t count = buffer.element_count() / 3;
        return buffer.slice_view(2 * count * dtype_size(buffer.dtype()), count);
      };
      SdpaOperands alone{last_of(x.q), last_of(x.k), last_of(x.v),
                         device.empty({one.n_heads * seq_len * 32}, dtype),
                         device.empty({one.n_heads * seq_len}, DType::f32)};
      sdpa(device, alone, one);
      INFO(kernel, " L ", seq_len);
      CHECK(bytes_of(alone.out) == bytes_of(last_of(x.out)));
      CHECK(bytes_of(alone.lse) == bytes_of(last_of(x.lse)));
    }
  }
}

TEST_CASE("metal attention: the packed form takes its 32 bytes in the documented order") {
  const Device device("metal");
  const KernelRegistry registry(device);
  std::mt19937 rng(17);
  for (const DType dtype : kDTypes) {
    SdpaProblem problem = problem_of({2, 4, 2, 37, 21, 29, 20, 20, true}, dtype);
    problem.return_lse = false;
    const SdpaOperands x = random_operands(rng, device, problem);
    const Reference reference = reference_sdpa(problem, x);
    // n_heads, n_kv_heads, head_dim, seq_len, kv_seq_len, scale, kv_capacity, do_causal
    std::array<std::uint32_t, 8> params{4, 2, 20, 37, 21, 0, 29, 1};
    std::memcpy(&params[5], &problem.scale, sizeof(float));
    const char* name = dtype == DType::f32   ? "sdpa"
                       : dtype == DType::f16 ? "sdpa_f16"
                                             : "sdpa_bf16";
    CommandEncoder encoder = device.command_encoder();
    encoder.encode_threadgroups(
        registry.get_pipeline(name),
        {{0, x.q}, {1, x.k}, {2, x.v}, {3, x.out}, {4, inline_bytes(params)}}, {2, 4, 2},
        {32, 1, 1});
    encoder.commit_and_wait();
    CHECK(worst_error(problem, x, reference) <= 1.0);
  }
}

TEST_CASE("metal attention: states of spans merge; spans of unseen keys are not read") {
  // Runs of one batch and of several, of more spans than lanes, and one to three blocks of columns.
  for (const std::uint32_t n_spans : {9u, 11u, 32u, 33u, 75u, 128u, 256u, 300u}) {
    for (const std::uint32_t width : {1u, 37u, 128u, 129u, 300u}) {
      CAPTURE(n_spans);
      CAPTURE(width);
      CHECK(wrong_merges(n_spans, width, 0) == 0);
    }
  }
}

TEST_CASE("metal attention: states whose references are largest scores merge") {
  for (const float middle : {0x1p22f, -0x1p22f}) {
    CAPTURE(middle);
    CHECK(wrong_merges(11, 37, middle) == 0);
    CHECK(wrong_merges(75, 9, middle) == 0);
  }
}

TEST_CASE("metal attention: head dims over 576 are refused") {
  const Device device("metal");
  const SdpaProblem problem = problem_of({1, 1, 1, 1, 1, 1, 577, 577, true}, DType::f32);
  CHECK(error_of([&] { plan_sdpa(device, problem); }, "takes 1 to 576") ==
        ErrorCode::invalid_argument);
}

TEST_CASE("metal attention: long constants go through a buffer") {
  const Device device("metal");
  std::mt19937 rng(19);
  // 300 sequences of 16 bytes are more than an inline binding takes.
  SdpaProblem problem = problem_of({300, 1, 1, 1, 4, 4, 8, 8, true}, DType::f32);
  for (std::int64_t b = 0; b < 300; ++b) problem.kv_lengths.push_back(b % 5);
  const SdpaOperands x = random_operands(rng, device, problem);
  const Reference reference = reference_sdpa(problem, x);
  sdpa(device, x, problem);
  CHECK(worst_error(problem, x, reference) <= 1.0);
}

}  // namespace metal_sdpa::test
