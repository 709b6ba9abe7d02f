// States merged on each device against float64.
#include "metal_sdpa/merge_states.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr double kUnit = 0x1p-24;

double unit_of(DType dtype) {
  return dtype == DType::f32 ? kUnit : dtype == DType::f16 ? 0x1p-11 : 0x1p-8;
}

std::size_t at(const TensorLayout& layout, std::int64_t b, std::int64_t h, std::int64_t r) {
  return static_cast<std::size_t>(layout.offset + b * layout.batch_stride + h * layout.head_stride +
                                  r * layout.row_stride);
}

std::size_t at(const StatesLayout& layout, std::int64_t i, std::int64_t b, std::int64_t h,
               std::int64_t r) {
  return at(TensorLayout{layout.offset, layout.batch_stride, layout.head_stride, layout.row_stride},
            b, h, r) +
         static_cast<std::size_t>(i * layout.state_stride);
}

struct Merge {
  MergeProblem problem;
  MergeOperands operands;

  std::size_t states() const {
    const MergeProblem& p = problem;
    return static_cast<std::size_t>(p.n_states * p.batch * p.heads * p.rows);
  }
};

/// Rows lie `gap` elements apart, states and heads in an order of their own, behind an odd offset.
Merge make_merge(const Device& device, MergeProblem p, std::mt19937& rng) {
  const std::int64_t step = p.width + 3;
  p.outs = {5, step, p.n_states * step * p.rows * p.heads, p.n_states * step * p.rows,
            p.n_states * step};
  p.lses = {1, p.batch * p.heads * p.rows, 1, p.batch, p.batch * p.heads};
  p.out = {2, p.width, p.batch * p.width, p.batch * p.heads * p.width};
  p.lse = {0, p.heads * p.rows, p.rows, 1};
  Merge merge{p, {}};
  const auto states = static_cast<std::int64_t>(merge.states());
  const std::int64_t rows = p.batch * p.heads * p.rows;
  merge.operands.outs = device.empty({5 + states * step}, p.dtype);
  merge.operands.lses = device.empty({1 + states}, DType::f32);
  merge.operands.out = device.empty({2 + rows * p.width}, p.out_dtype);
  merge.operands.lse = device.empty({rows}, DType::f32);
  std::normal_distribution<float> normal;
  for (std::size_t e = 0; e < merge.operands.outs.element_count(); ++e) {
    set_element(merge.operands.outs, e, normal(rng));
  }
  for (std::size_t e = 0; e < merge.operands.lses.element_count(); ++e) {
    set_element(merge.operands.lses, e, 4 * normal(rng));
  }
  return merge;
}

/// Every row against explicit weights in float64.
void check(const Merge& merge) {
  const MergeProblem& p = merge.problem;
  const MergeOperands& x = merge.operands;
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t h = 0; h < p.heads; ++h) {
      for (std::int64_t r = 0; r < p.rows; ++r) {
        double total = 0;
        double size = 1;
        double largest = -kInfinity;
        const auto lse_of = [&](std::int64_t i) {
          return static_cast<double>(get_element(x.lses, at(p.lses, i, b, h, r)));
        };
        for (std::int64_t i = 0; i < p.n_states; ++i) largest = std::max(largest, lse_of(i));
        for (std::int64_t i = 0; i < p.n_states; ++i) {
          if (lse_of(i) == -kInfinity) continue;
          total += std::exp(lse_of(i) - largest);
          size = std::max(size, std::abs(lse_of(i)));
        }
        const double lse = total == 0 ? -kInfinity : largest + std::log(total);
        const double got = get_element(x.lse, at(p.lse, b, h, r));
        if (total == 0) {
          REQUIRE(got == lse);
        } else {
          REQUIRE(std::abs(got - lse) <= kUnit * (8 + 4 * size));
        }
        for (std::int64_t d = 0; d < p.width; ++d) {
          double sum = 0;
          double magnitude = 0;
          for (std::int64_t i = 0; i < p.n_states && total > 0; ++i) {
            if (lse_of(i) == -kInfinity) continue;
            const double weight = std::exp(lse_of(i) - largest) / total;
            const double value =
                get_element(x.outs, at(p.outs, i, b, h, r) + static_cast<std::size_t>(d));
            sum += weight * value;
            magnitude += weight * std::abs(value);
          }
          const double out = get_element(x.out, at(p.out, b, h, r) + static_cast<std::size_t>(d));
          INFO("row ", b, " ", h, " ", r, ", column ", d);
          const double rounded = p.out_dtype == DType::f32 ? 0 : unit_of(p.out_dtype);
          REQUIRE(std::abs(out - sum) <=
                  kUnit * (12 + 4 * size) * magnitude + rounded * std::abs(sum) + 0x1p-24);
        }
      }
    }
  }
}

MergeProblem shape(std::int64_t n, std::int64_t b, std::int64_t h, std::int64_t r,
                   std::int64_t width) {
  MergeProblem p;
  p.n_states = n;
  p.batch = b;
  p.heads = h;
  p.rows = r;
  p.width = width;
  return p;
}

}  // namespace

TEST_CASE("states merge as float64 does it, in every type and from any layout") {
  std::mt19937 rng(31);
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    for (const DType in : {DType::f32, DType::f16, DType::bf16}) {
      for (const DType out : {DType::f32, DType::f16, DType::bf16}) {
        for (const MergeProblem& one :
             {shape(1, 1, 1, 1, 1), shape(2, 2, 3, 5, 64), shape(7, 1, 2, 3, 129),
              shape(33, 3, 1, 2, 40), shape(3, 2, 2, 2, device.limits().max_head_dim)}) {
          MergeProblem p = one;
          p.dtype = in;
          p.out_dtype = out;
          const Merge merge = make_merge(device, p, rng);
          merge_states(device, merge.operands, merge.problem);
          INFO(kind, " ", dtype_name(in), " to ", dtype_name(out), ", width ", p.width);
          check(merge);
        }
      }
    }
  }
}

TEST_CASE("states that saw nothing count for nothing, whatever they hold") {
  std::mt19937 rng(32);
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    const Merge merge = make_merge(device, shape(4, 1, 2, 8, 20), rng);
    const MergeProblem& p = merge.problem;
    for (std::int64_t h = 0; h < 2; ++h) {
      for (std::int64_t r = 0; r < 8; ++r) {
        for (std::int64_t i = 0; i < 4; ++i) {
          if ((r >> i & 1) == 0 && r != 0) continue;  // row 0 is all empty
          set_element(merge.operands.lses, at(p.lses, i, 0, h, r), -kInfinity);
          for (std::size_t d = 0; d < 20; ++d) {
            set_element(merge.operands.outs, at(p.outs, i, 0, h, r) + d,
                        d % 2 == 0 ? kNan : kInfinity);
          }
        }
      }
    }
    merge_states(device, merge.operands, p);
    check(merge);
  }
}

TEST_CASE("far log-sum-exps neither overflow nor lose the largest") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    std::mt19937 rng(33);
    const Merge merge = make_merge(device, shape(3, 1, 1, 4, 16), rng);
    const float lses[4][3] = {
        {3e38f, -3e38f, 1}, {-3.4e38f, -3.4e38f, -3.4e38f}, {1e4f, 1e4f + 1, 9e3f}, {0, -200, 0}};
    for (std::int64_t r = 0; r < 4; ++r) {
      for (std::int64_t i = 0; i < 3; ++i) {
        set_element(merge.operands.lses, at(merge.problem.lses, i, 0, 0, r), lses[r][i]);
      }
    }
    merge_states(device, merge.operands, merge.problem);
    check(merge);
    // A NaN among them makes the row NaN, and no other.
    set_element(merge.operands.lses, at(merge.problem.lses, 1, 0, 0, 2), kNan);
    merge_states(device, merge.operands, merge.problem);
    CHECK(std::isnan(get_element(merge.operands.out, at(merge.problem.out, 0, 0, 2))));
    CHECK(std::isnan(get_element(merge.operands.lse, at(merge.problem.lse, 0, 0, 2))));
    CHECK(std::isfinite(get_element(merge.operands.out, at(merge.problem.out, 0, 0, 3))));
  }
}

TEST_CASE("a merge into one of its states gives the bits of a merge elsewhere") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    for (std::int64_t state = 0; state < 3; ++state) {
      std::mt19937 rng(34);
      const Merge apart = make_merge(device, shape(3, 2, 2, 3, 130), rng);
      merge_states(device, apart.operands, apart.problem);
      rng.seed(34);
      Merge inside = make_merge(device, shape(3, 2, 2, 3, 130), rng);
      MergeProblem& p = inside.problem;
      inside.operands.out = inside.operands.outs;
      inside.operands.lse = inside.operands.lses;
      p.out = {p.outs.offset + state * p.outs.state_stride, p.outs.batch_stride, p.outs.head_stride,
               p.outs.row_stride};
      p.lse = {p.lses.offset + state * p.lses.state_stride, p.lses.batch_stride, p.lses.head_stride,
               p.lses.row_stride};
      merge_states(device, inside.operands, p);
      for (std::int64_t b = 0; b < 2; ++b) {
        for (std::int64_t h = 0; h < 2; ++h) {
          for (std::int64_t r = 0; r < 3; ++r) {
            CHECK(get_element(inside.operands.lse, at(p.lse, b, h, r)) ==
                  get_element(apart.operands.lse, at(apart.problem.lse, b, h, r)));
            for (std::size_t d = 0; d < 130; ++d) {
              REQUIRE(get_element(inside.operands.out, at(p.out, b, h, r) + d) ==
                      get_element(apart.operands.out, at(apart.problem.out, b, h, r) + d));
            }
          }
        }
      }
    }
  }
}

TEST_CASE("a merge waits for what makes its states, and what reads it waits for the merge") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    const KernelRegistry registry(device);
    std::mt19937 rng(35);
    const Merge first = make_merge(device, shape(3, 1, 2, 4, 32), rng);
    Merge second = make_merge(device, shape(1, 1, 2, 4, 32), rng);
    second.operands.outs = first.operands.out;
    second.operands.lses = first.operands.lse;
    second.problem.outs = {first.problem.out.offset, 0, 0, first.problem.out.head_stride,
                           first.problem.out.row_stride};
    second.problem.lses = {0, 0, 0, first.problem.lse.head_stride, first.problem.lse.row_stride};
    CommandEncoder encoder(device);
    encoder.begin_capture();
    encode_merge_states(encoder, registry, device, first.operands, first.problem);
    encode_merge_states(encoder, registry, device, second.operands, second.problem);
    const Graph graph = encoder.end_capture();
    graph.replay(encoder);
    encoder.commit_and_wait();
    CHECK(encoder.barrier_count() == 1);
    check(first);
    check(second);
  }
}

TEST_CASE("bad merges are refused by name") {
  const Device device("cpu");
  std::mt19937 rng(36);
  const auto refusal = [&](const std::string& word, const auto& change) {
    Merge merge = make_merge(device, shape(2, 1, 2, 3, 8), rng);
    change(merge.problem, merge.operands);
    return error_of([&] { merge_states(device, merge.operands, merge.problem); }, word);
  };
  using P = MergeProblem;
  using X = MergeOperands;
  constexpr auto kBad = ErrorCode::invalid_argument;
  CHECK(refusal("n_states: 0", [](P& p, X&) { p.n_states = 0; }) == kBad);
  CHECK(refusal("heads: 0", [](P& p, X&) { p.heads = 0; }) == kBad);
  CHECK(refusal("width: 1025", [](P& p, X&) { p.width = 1025; }) == kBad);
  CHECK(refusal("outs: elements", [](P& p, X&) { p.outs.state_stride *= 2; }) == kBad);
  CHECK(refusal("outs: elements -", [](P& p, X&) { p.outs.state_stride = -20; }) == kBad);
  CHECK(refusal("lses: its strides", [](P& p, X&) { p.lses.state_stride = INT64_MAX; }) == kBad);
  CHECK(refusal("out: its strides make elements overlap", [](P& p, X&) { p.out.row_stride = 1; }) ==
        kBad);
  CHECK(refusal("out: overlaps outs", [](P& p, X& x) {
          x.out = x.outs;
          p.out = {p.outs.offset + 1, p.outs.batch_stride, p.outs.head_stride, p.outs.row_stride};
        }) == kBad);
  CHECK(refusal("lse: overlaps out", [](P&, X& x) { x.lse = x.out; }) == kBad);
  CHECK(refusal("lses: the buffer is empty", [](P&, X& x) { x.lses = {}; }) == kBad);
  CHECK(refusal("out: dtype f32, takes f16", [](P& p, X&) { p.out_dtype = DType::f16; }) ==
        ErrorCode::unsupported_dtype);
  CHECK(refusal("dtype i32", [](P& p, X&) { p.dtype = DType::i32; }) ==
        ErrorCode::unsupported_dtype);
  Merge none = make_merge(device, shape(2, 1, 2, 3, 8), rng);
  none.problem.rows = 0;
  merge_states(device, none.operands, none.problem);
}
