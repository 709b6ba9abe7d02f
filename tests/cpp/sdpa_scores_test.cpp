// What happens to scores where f32 is at its edge, on every kernel family and instruction set of
// this machine: biases of any size, sinks of any size, softcaps, slopes, and rows that a tile
// cannot give.
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "cpu_kernels.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

constexpr float kLowest = -3.402823466e38f;

void check_all(SdpaProblem problem, const SdpaOperands& x, const std::string& what) {
  const Reference reference = reference_sdpa(problem, x);
  for (const std::string& isa : isas()) {
    for (const int threads : {1, 3}) {
      const Device device = device_of(isa, threads);
      for (const char* kernel : {"sdpa", "sdpa_decode", "sdpa_prefill"}) {
        problem.kernel = kernel;
        INFO(what, " isa ", isa, " kernel ", problem.kernel, " threads ", threads, " dtype ",
             name_of(problem.dtype));
        fill_bytes(x.out, 0xff);
        sdpa(device, x, problem);
        REQUIRE(worst_error(problem, x, reference) <= 1.0);
      }
    }
  }
}

/// Two query heads under one KV head, packed; three spans of decode's, two or three of prefill's.
struct Case {
  SdpaProblem problem;
  SdpaOperands operands;
};

Case make_case(std::mt19937& rng, DType dtype, std::int64_t rows, std::int64_t keys = 1300) {
  Case c;
  c.problem = problem_of("", dtype, 2, rows, keys, 12, 9);
  c.operands = random_operands(rng, Device("cpu"), c.problem);
  return c;
}

template <typename Value>
void add_mask(Case& c, DType dtype, const Value& value) {
  SdpaProblem& p = c.problem;
  p.mask = MaskLayout{dtype, 0, 0, 0, p.kv_capacity, 1};
  c.operands.mask = Device("cpu").empty({p.seq_len, p.kv_capacity}, dtype);
  for (std::int64_t i = 0; i < p.seq_len; ++i) {
    for (std::int64_t j = 0; j < p.kv_capacity; ++j) {
      set_element(c.operands.mask, static_cast<std::size_t>(i * p.kv_capacity + j), value(i, j));
    }
  }
}

void add_sinks(Case& c, float first, float second) {
  c.problem.sinks = HeadLayout{};
  c.operands.sinks = Device("cpu").empty({2}, DType::f32);
  set_element(c.operands.sinks, 0, first);
  set_element(c.operands.sinks, 1, second);
}

void add_slopes(Case& c, float first, float second) {
  c.problem.alibi_slopes = HeadLayout{};
  c.operands.alibi_slopes = Device("cpu").empty({2}, DType::f32);
  set_element(c.operands.alibi_slopes, 0, first);
  set_element(c.operands.alibi_slopes, 1, second);
}

}  // namespace

TEST_CASE("large negative biases over whole spans, before others and behind them") {
  std::mt19937 rng(1);
  for (const DType dtype : kDTypes) {
    for (const float bias : {-200.0f, -1e4f, -1e6f, -1e9f, -1e30f, -2e38f, kLowest}) {
      for (const std::int64_t edge : {3, 512, 1024, 1290}) {
        Case c = make_case(rng, dtype, 5);
        const std::string what = "bias " + std::to_string(bias) + " edge " + std::to_string(edge);
        add_mask(c, DType::f32, [&](auto, auto j) { return j < edge ? bias : 0.0f; });
        check_all(c.problem, c.operands, what + " before");
        add_mask(c, DType::f32, [&](auto, auto j) { return j < edge ? 0.0f : bias; });
        check_all(c.problem, c.operands, what + " behind");
        add_mask(c, DType::f32, [&](auto i, auto j) {
          return i % 2 == 0 ? bias : j < edge ? -INFINITY : bias * 0.99f;
        });
        check_all(c.problem, c.operands, what + " everywhere");
      }
    }
  }
}

TEST_CASE("rows of lowest finite biases are means, also of f16 and bf16") {
  std::mt19937 rng(2);
  for (const DType dtype : kDTypes) {
    for (const DType mask_dtype : kDTypes) {
      const float lowest = mask_dtype == DType::f16    ? -65504.0f
                           : mask_dtype == DType::bf16 ? -0x1.fep127f
                                                       : kLowest;
      Case c = make_case(rng, dtype, 5);
      add_mask(c, mask_dtype, [&](auto i, auto j) {
        if (i == 0) return lowest;
        if (i == 1) return j % 3 == 0 ? lowest : -INFINITY;
        if (i == 2) return j == 700 ? 0.5f : lowest;
        if (i == 3) return j % 2 == 0 ? lowest : lowest * 0.75f;
        return j < 600 ? lowest : -1.0f;
      });
      check_all(c.problem, c.operands, "lowest");
      c.problem.softcap = 3;
      add_slopes(c, 0.25f, -1e-3f);
      check_all(c.problem, c.operands, "lowest with a softcap and slopes");
      add_sinks(c, 2, -INFINITY);
      check_all(c.problem, c.operands, "lowest with sinks");
    }
  }
}

TEST_CASE("sinks of any size, once a row whatever its spans") {
  std::mt19937 rng(3);
  for (const DType dtype : kDTypes) {
    for (const std::int64_t rows : {1, 7, 60}) {
      for (const float sink :
           {-INFINITY, kLowest, -300.0f, -1.0f, 4.0f, 30.0f, 95.0f, 110.0f, 400.0f, 3e38f}) {
        Case c = make_case(rng, dtype, rows);
        add_sinks(c, sink, 0.5f);
        c.problem.causal = rows == 60;
        check_all(c.problem, c.operands, "sink " + std::to_string(sink));
        c.problem.kv_len = 0;
        c.problem.causal = false;
        check_all(c.problem, c.operands, "no keys, sink " + std::to_string(sink));
      }
    }
  }
}

TEST_CASE("softcaps from nothing to more than any score") {
  std::mt19937 rng(4);
  for (const DType dtype : kDTypes) {
    for (const float softcap :
         {1e-40f, 1e-6f, 0.3f, 1.0f, 5.0f, 30.0f, 1e4f, 1e20f, 1e37f, 3e38f}) {
      Case c = make_case(rng, dtype, 5);
      c.problem.softcap = softcap;
      check_all(c.problem, c.operands, "softcap " + std::to_string(softcap));
      c.problem.scale *= 40;  // far up the curve
      check_all(c.problem, c.operands, "steep, softcap " + std::to_string(softcap));
      c.problem.scale = 0;
      check_all(c.problem, c.operands, "scale 0, softcap " + std::to_string(softcap));
    }
  }
}

TEST_CASE("slopes of any size and keys at any distance") {
  std::mt19937 rng(5);
  for (const DType dtype : kDTypes) {
    for (const float slope : {0.0f, 1e-7f, 0.5f, 100.0f, 1e30f, 3e38f, -0.5f, -3e38f}) {
      Case c = make_case(rng, dtype, 5);
      add_slopes(c, slope, 1.0f / 256);
      check_all(c.problem, c.operands, "slope " + std::to_string(slope));
      c.problem.key_stride = std::int64_t{1} << 30;
      c.problem.key_offset = 5;
      c.problem.q_start = (std::int64_t{900} << 30) + 6;
      if (std::fabs(slope) < 1e30f)
        check_all(c.problem, c.operands, "far, slope " + std::to_string(slope));
    }
  }
}

TEST_CASE("rows that are attended by themselves know every feature") {
  std::mt19937 rng(6);
  for (const DType dtype : kDTypes) {
    for (int round = 0; round < 6; ++round) {
      Case c = make_case(rng, dtype, 6, 700);
      if (round % 2 == 0) c.problem.softcap = 4;
      add_slopes(c, 0.01f, 0.02f);
      add_sinks(c, 1, -2);
      c.problem.window_left = 500;
      c.problem.causal = true;
      add_mask(c, DType::bf16, [&](auto i, auto j) {
        return (i + j) % 5 == round ? -INFINITY : static_cast<float>(i - j % 7) * 0.25f;
      });
      // Rows 0 to 4 do not see the last key, row 5 does not see key 194.
      for (const std::size_t j : {std::size_t{699}, std::size_t{194}}) {
        for (std::size_t d = 0; d < 9; ++d) set_element(c.operands.v, j * 9 + d, NAN);
      }
      check_all(c.problem, c.operands, "round " + std::to_string(round));
    }
  }
}
