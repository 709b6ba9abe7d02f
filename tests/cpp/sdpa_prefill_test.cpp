// sdpa_prefill on every instruction set that this machine runs.
#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "core/half.h"
#include "cpu_kernels.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

/// Elements of a packed tensor, moved into another layout.
void copy_tensor(const Buffer& from, const TensorLayout& a, const Buffer& to, const TensorLayout& b,
                 std::int64_t heads, std::int64_t rows, std::int64_t width) {
  for (std::int64_t h = 0; h < heads; ++h) {
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t d = 0; d < width; ++d) {
        const auto source = a.offset + h * a.head_stride + i * a.row_stride + d;
        const auto target = b.offset + h * b.head_stride + i * b.row_stride + d;
        set_element(to, static_cast<std::size_t>(target),
                    get_element(from, static_cast<std::size_t>(source)));
      }
    }
  }
}

/// The buffer as bits of f32, element by element.
std::vector<std::uint32_t> bits_of(const Buffer& buffer, const TensorLayout& layout,
                                   std::int64_t heads, std::int64_t rows, std::int64_t width) {
  std::vector<std::uint32_t> bits;
  for (std::int64_t h = 0; h < heads; ++h) {
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t d = 0; d < width; ++d) {
        const auto element = layout.offset + h * layout.head_stride + i * layout.row_stride + d;
        bits.push_back(
            std::bit_cast<std::uint32_t>(get_element(buffer, static_cast<std::size_t>(element))));
      }
    }
  }
  return bits;
}

}  // namespace

TEST_CASE("random problems are within the bounds") {
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa, 2);
    std::mt19937 rng(20240611);
    for (int round = 0; round < 150; ++round) {
      SdpaProblem problem = random_problem(rng, {});
      problem.kernel = "sdpa_prefill";
      const SdpaOperands x = random_operands(rng, device, problem);
      INFO(isa, " round ", round, " dtype ", name_of(problem.dtype));
      REQUIRE(error_of_run(device, problem, x) <= 1.0);
    }
  }
}

TEST_CASE("lengths around the edges of panels, blocks, spans, tiles and items") {
  struct Edge {
    std::int64_t rows, keys, width;
  };
  // Widths 8, 200 and 400 have blocks of 256, 128 and 64 keys. Spans have 512 keys, 1024 where rows
  // are more than 48 and blocks are not of 64.
  const std::vector<Edge> edges{
      {13, 31, 8},   {12, 33, 8},   {11, 63, 8},   {25, 255, 8},  {24, 256, 8},
      {23, 257, 8},  {5, 511, 8},   {6, 512, 8},   {7, 513, 8},   {48, 1025, 3},
      {49, 1023, 3}, {49, 1025, 3}, {7, 2049, 8},  {191, 100, 8}, {192, 100, 8},
      {193, 100, 8}, {385, 300, 4}, {5, 129, 200}, {3, 513, 200}, {4, 65, 400},
      {3, 513, 400}, {33, 95, 8},   {32, 97, 8},   {17, 96, 72},  {16, 65, 40},
  };
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa, 2);
    std::mt19937 rng(7);
    for (const Edge& edge : edges) {
      for (const DType dtype : kDTypes) {
        SdpaProblem p = prefill_problem(dtype, 1, edge.rows, edge.keys, edge.width, edge.width);
        p.causal = true;
        const SdpaOperands x = random_operands(rng, device, p);
        INFO(isa, " L ", edge.rows, " S ", edge.keys, " D ", edge.width, " ", name_of(dtype));
        CHECK(error_of_run(device, p, x) <= 1.0);
        p.q_start = -edge.rows / 2;
        CHECK(error_of_run(device, p, x) <= 1.0);
        p.q_start = edge.keys - 2;
        CHECK(error_of_run(device, p, x) <= 1.0);
      }
    }
  }
}

TEST_CASE("head dims of every kind, also where values have another width") {
  const std::array<std::array<std::int64_t, 2>, 14> dims{{{1, 1},
                                                          {2, 3},
                                                          {40, 40},
                                                          {72, 72},
                                                          {80, 80},
                                                          {96, 96},
                                                          {112, 112},
                                                          {192, 128},
                                                          {320, 320},
                                                          {512, 512},
                                                          {576, 512},
                                                          {1024, 1023},
                                                          {7, 1024},
                                                          {1023, 5}}};
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa);
    std::mt19937 rng(8);
    for (const auto& [head_dim, value_dim] : dims) {
      for (const DType dtype : kDTypes) {
        const SdpaProblem p = prefill_problem(dtype, 3, 6, 70, head_dim, value_dim);
        const SdpaOperands x = random_operands(rng, device, p);
        INFO(isa, " D ", head_dim, " Dv ", value_dim, " ", name_of(dtype));
        CHECK(error_of_run(device, p, x) <= 1.0);
      }
    }
  }
}

TEST_CASE("long sums stay within the bounds: equal scores of equal values, and wide keys") {
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa);
    std::mt19937 rng(9);
    for (const std::int64_t keys : {256, 2048, 30000}) {
      const SdpaProblem p = prefill_problem(DType::f32, 1, 2, keys, 4, 3);
      const SdpaOperands x = poisoned_operands(device, p);
      fill_bytes(x.q, 0);
      fill_normal(x.k, rng, 1);
      for (const float value : {0.1f, 1.0f / 3, 0.7f, 1e-3f, 0.9999f}) {
        for (std::size_t i = 0; i < x.v.element_count(); ++i) set_element(x.v, i, value);
        INFO(isa, " S ", keys, " value ", value);
        CHECK(error_of_run(device, p, x) <= 1.0);
      }
    }
    // Products of one sign: partial sums grow steadily, and the log-sum-exp shows their error.
    SdpaProblem p = prefill_problem(DType::f32, 1, 2, 9, 1024, 3);
    const SdpaOperands x = poisoned_operands(device, p);
    for (const Buffer& buffer : {x.q, x.k, x.v}) {
      for (std::size_t i = 0; i < buffer.element_count(); ++i) {
        set_element(buffer, i, 0.1f + 1e-4f * static_cast<float>(i % 7));
      }
    }
    for (const float scale : {0.03125f, 1.0f}) {
      p.scale = scale;
      INFO(isa, " scale ", scale);
      CHECK(error_of_run(device, p, x) <= 1.0);
    }
  }
}

TEST_CASE("sums over many spans stay within the bound, also when a late maximum rescales them") {
  constexpr std::int64_t kKeys = 65536;
  constexpr std::int64_t kSpan = 512;  // of rows as wide as these
  SdpaProblem p = prefill_problem(DType::f32, 1, 1, kKeys, 766, 3);
  p.scale = 1;
  // Key j is elements j..j+765 and the query picks the first of them, so that element j is score j;
  // all values are one row. Whatever the weights, the output is that row.
  p.k.row_stride = 1;
  p.v.row_stride = 0;
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa);
    CHECK(plan_sdpa(device, p).span_len == kSpan);
    const SdpaOperands x = poisoned_operands(device, p);
    fill_bytes(x.q, 0);
    set_element(x.q, 0, 1);
    for (const float late_score : {0.0f, 7.0f}) {
      for (std::size_t j = 0; j < x.k.element_count(); ++j) {
        set_element(x.k, j, j < kKeys - kSpan ? 0 : late_score);
      }
      for (const float value : {0.1f, 1.0f / 3, 0.7f}) {
        for (std::size_t d = 0; d < 3; ++d) {
          set_element(x.v, d, value * (1 + 0.37f * static_cast<float>(d)));
        }
        sdpa(device, x, p);
        for (std::size_t d = 0; d < 3; ++d) {
          const float want = get_element(x.v, d);
          INFO(isa, " late score ", late_score, " value ", want);
          CHECK(std::fabs(get_element(x.out, d) - want) <= 16 * 0x1p-24f * want);
        }
      }
    }
  }
}

TEST_CASE("what a thread packed before never reaches a result") {
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa);
    for (const DType dtype : kDTypes) {
      for (const std::int64_t width : {40, 72, 128}) {
        for (const std::int64_t keys : {3, 35}) {
          std::mt19937 rng(17);
          const SdpaProblem p = prefill_problem(dtype, 1, 20, keys, width, width);
          const SdpaOperands x = random_operands(rng, device, p);
          // NaN fills all memory of the thread, of more keys and columns or of as many.
          for (const SdpaProblem& before : {prefill_problem(dtype, 1, 40, 256, 128, 128), p}) {
            sdpa(device, poisoned_operands(device, before), before);
            INFO(isa, " ", name_of(dtype), " D ", width, " S ", keys, " after S ", before.kv_len);
            CHECK(error_of_run(device, p, x) <= 1.0);
          }
        }
      }
    }
  }
}

TEST_CASE(
    "rounded weights stay within the bound where a row hangs on few of them, or they repeat") {
  // Score j of query (a, b) is 0, -a or -b as key j is of kind 0, 1 or 2; so many slots, and what
  // kind stands in each.
  struct Case {
    const char* name;
    std::int64_t keys;
    std::int64_t (*kind)(std::int64_t);
  };
  const std::array<Case, 5> cases{
      {{"one small weight", 2, [](std::int64_t j) { return j; }},
       {"one small weight in a late block", 601,
        [](std::int64_t j) { return std::int64_t{j == 555}; }},
       {"a large weight of no value", 2, [](std::int64_t j) { return 1 + j; }},
       {"two weights again and again", 401, [](std::int64_t j) { return j == 0 ? 0 : 1 + j % 2; }},
       {"the same place in each block", 2048,
        [](std::int64_t j) { return std::int64_t{j % 64 == 6}; }}}};
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa);
    for (const DType dtype : kDTypes) {
      for (const Case& c : cases) {
        std::mt19937 rng(17);
        SdpaProblem p =
            prefill_problem(dtype, 1, std::min<std::int64_t>(1500, 300000 / c.keys), c.keys, 2, 8);
        p.scale = 1;
        const SdpaOperands x = poisoned_operands(device, p);
        fill_bytes(x.k, 0);
        fill_bytes(x.v, 0);
        for (std::int64_t j = 0; j < c.keys; ++j) {
          const std::int64_t kind = c.kind(j);
          if (kind != 0) set_element(x.k, static_cast<std::size_t>(2 * j + kind - 1), -1);
          for (std::int64_t d = 0; d < 8; ++d) {
            set_element(x.v, static_cast<std::size_t>(8 * j + d), kind == 1 ? 1.0f : 0.0f);
          }
        }
        std::uniform_real_distribution<float> scores(0.1f, 4);
        for (std::size_t i = 0; i < x.q.element_count(); ++i) set_element(x.q, i, scores(rng));
        INFO(isa, " ", name_of(dtype), " ", std::string(c.name));
        CHECK(error_of_run(device, p, x) <= 1.0);
      }
    }
  }
}

TEST_CASE("a weight alone in its channel keeps its bits beside values that fill every channel") {
  constexpr std::int64_t kWidth = 1024;
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa);
    for (const DType dtype : kDTypes) {
      std::mt19937 rng(18);
      SdpaProblem p = prefill_problem(dtype, 1, 400, 7, 1, kWidth);
      p.scale = 1;
      const SdpaOperands x = poisoned_operands(device, p);
      fill_bytes(x.k, 0);
      fill_bytes(x.v, 0);
      set_element(x.k, 6, -1);
      set_element(x.v, 6 * kWidth, 1);
      for (std::size_t d = 0; d < kWidth; ++d) set_element(x.v, d, 0x1p-6f);
      std::uniform_real_distribution<float> scores(0.1f, 2);
      for (std::size_t i = 0; i < x.q.element_count(); ++i) set_element(x.q, i, scores(rng));
      INFO(isa, " ", name_of(dtype));
      CHECK(error_of_run(device, p, x) <= 1.0);
    }
  }
}

TEST_CASE("scores stay within the bounds where queries lie along keys: partial sums only grow") {
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa);
    for (const DType dtype : kDTypes) {
      for (const std::int64_t head_dim : {64, 96, 128, 200, 1024}) {
        std::mt19937 rng(16);
        for (int round = 0; round < (head_dim > 256 ? 2 : 12); ++round) {
          SdpaProblem p = prefill_problem(dtype, 1, 30, 32, head_dim, 8);
          p.scale *= round % 2 == 0 ? 1 : 6;
          const SdpaOperands x = poisoned_operands(device, p);
          fill_normal(x.k, rng, 1);
          fill_normal(x.v, rng, 1);
          for (std::size_t i = 0; i < x.q.element_count(); ++i) {
            set_element(x.q, i, 1.5f * get_element(x.k, i));
          }
          INFO(isa, " ", name_of(dtype), " D ", head_dim);
          CHECK(error_of_run(device, p, x) <= 1.0);
        }
      }
    }
  }
}

TEST_CASE("bits do not depend on threads, batch, capacity, strides or alignment") {
  for (const std::string& isa : isas()) {
    for (const DType dtype : kDTypes) {
      const Device one = device_of(isa, 1);
      const Device three = device_of(isa, 3);
      std::mt19937 rng(10);
      SdpaProblem p = prefill_problem(dtype, 3, 150, 400, 72, 40);
      p.causal = true;
      const SdpaOperands x = random_operands(rng, one, p);
      sdpa(one, x, p);
      const auto want = bits_of(x.out, p.out, p.n_heads, p.seq_len, p.value_dim);
      const auto want_lse = bytes_of(x.lse);
      INFO(isa, " ", name_of(dtype));

      // Sequence 1 of 2, other lengths in sequence 0, rows apart and at an odd offset.
      SdpaProblem q = p;
      q.batch = 2;
      q.kv_capacity = p.kv_len + 41;
      q.kv_lengths = {17, p.kv_len};
      const auto spread = [](std::int64_t heads, std::int64_t rows, std::int64_t width) {
        TensorLayout layout;
        layout.offset = 1;
        layout.head_stride = width + 3;
        layout.row_stride = heads * layout.head_stride + 5;
        layout.batch_stride = rows * layout.row_stride;
        return layout;
      };
      q.q = spread(3, q.seq_len, 72);
      q.k = spread(1, q.kv_capacity, 72);
      q.v = spread(1, q.kv_capacity, 40);
      q.out = spread(3, q.seq_len, 40);
      const SdpaOperands y = random_operands(rng, three, q);
      const auto second = [](TensorLayout layout) {
        layout.offset += layout.batch_stride;
        return layout;
      };
      copy_tensor(x.q, p.q, y.q, second(q.q), 3, p.seq_len, 72);
      copy_tensor(x.k, p.k, y.k, second(q.k), 1, p.kv_len, 72);
      copy_tensor(x.v, p.v, y.v, second(q.v), 1, p.kv_len, 40);
      for (const Device& device : {one, three}) {
        fill_bytes(y.out, 0xff);
        sdpa(device, y, q);
        CHECK(bits_of(y.out, second(q.out), 3, p.seq_len, 40) == want);
        const auto lse = bytes_of(y.lse);
        CHECK(std::equal(want_lse.begin(), want_lse.end(),
                         lse.end() - static_cast<std::ptrdiff_t>(want_lse.size())));
      }
    }
  }
}

TEST_CASE("stale slots never reach the output and padding is never written") {
  for (const std::string& isa : isas()) {
    for (const DType dtype : kDTypes) {
      const Device device = device_of(isa);
      std::mt19937 rng(11);
      SdpaProblem p = prefill_problem(dtype, 2, 20, 300, 24, 24);
      p.kv_len = 259;
      p.out.row_stride = 31;
      p.out.head_stride = 20 * 31;
      const SdpaOperands x = random_operands(rng, device, p);
      sdpa(device, x, p);
      const auto before = bytes_of(x.out);
      for (const float stale : {INFINITY, 1e30f, 0.0f}) {
        for (std::size_t i = 259 * 24; i < 300 * 24; ++i) {
          set_element(x.k, i, stale);
          set_element(x.v, i, stale);
        }
        fill_bytes(x.out, 0xff);
        sdpa(device, x, p);
        INFO(isa, " ", name_of(dtype), " stale ", stale);
        CHECK(bytes_of(x.out) == before);
      }
      for (std::size_t row = 0; row + 1 < 40; ++row) {
        for (std::size_t d = 24; d < 31; ++d) {
          CHECK(std::isnan(get_element(x.out, row * 31 + d)));
        }
      }
    }
  }
}

TEST_CASE("nothing is touched behind the last row of an operand") {
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa);
    std::mt19937 rng(19);
    for (const DType dtype : kDTypes) {
      for (const std::int64_t width : {5, 36, 40, 512}) {
        for (const std::int64_t keys : {1, 9, 65, 200}) {
          const SdpaProblem p = prefill_problem(dtype, 2, 13, keys, width, width);
          SdpaOperands x = random_operands(rng, device, p);
          x.q = before_a_wall(device, x.q);
          x.k = before_a_wall(device, x.k);
          x.v = before_a_wall(device, x.v);
          x.out = before_a_wall(device, x.out);
          INFO(isa, " ", name_of(dtype), " D ", width, " S ", keys);
          CHECK(error_of_run(device, p, x) <= 1.0);
        }
      }
    }
  }
}

TEST_CASE("a NaN reaches the rows that see it, in any block, and no others") {
  for (const std::string& isa : isas()) {
    for (const DType dtype : kDTypes) {
      const Device device = device_of(isa);
      for (const std::size_t key : {0u, 40u, 255u, 256u, 290u}) {
        std::mt19937 rng(12);
        SdpaProblem p = prefill_problem(dtype, 1, 300, 300, 16, 16);
        p.causal = true;
        const SdpaOperands x = random_operands(rng, device, p);
        set_element(x.k, key * 16 + 5, NAN);
        sdpa(device, x, p);
        INFO(isa, " ", name_of(dtype), " key ", key);
        for (std::size_t i = 0; i < 300; ++i) {
          REQUIRE(std::isnan(get_element(x.out, i * 16 + 3)) == (i >= key));
          REQUIRE(std::isnan(x.lse.host<float>()[i]) == (i >= key));
        }
      }
    }
  }
}

TEST_CASE("rows without a visible key are 0 with lse -inf") {
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa);
    std::mt19937 rng(13);
    SdpaProblem p = prefill_problem(DType::f32, 2, 30, 40, 16, 16);
    p.causal = true;
    p.q_start = -15;
    const SdpaOperands x = random_operands(rng, device, p);
    CHECK(error_of_run(device, p, x) <= 1.0);
    CHECK(x.lse.host<float>()[14] == -INFINITY);
    CHECK(get_element(x.out, 14 * 16) == 0);
    CHECK(get_element(x.out, 15 * 16) != 0);
    p.kv_len = 0;
    CHECK(error_of_run(device, p, x) <= 1.0);
  }
}

TEST_CASE("16-bit elements are widened exactly and rounded to nearest even") {
  constexpr std::int64_t kWidth = 1024;
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa);
    std::mt19937 rng(14);
    for (const DType dtype : {DType::f16, DType::bf16}) {
      const bool is_f16 = dtype == DType::f16;
      const auto widen = is_f16 ? float_from_f16 : float_from_bf16;
      const auto narrow = is_f16 ? f16_from_float : bf16_from_float;
      // Two keys with the same score: the output is the mean of their values.
      const SdpaProblem p = prefill_problem(dtype, 1, 1, 2, 8, kWidth);
      const SdpaOperands x = poisoned_operands(device, p);
      fill_bytes(x.q, 0);
      fill_bytes(x.k, 0);
      auto* v = x.v.host<std::uint16_t>();
      for (std::uint32_t first = 0; first < 65536; first += kWidth) {
        for (std::int64_t d = 0; d < kWidth; ++d) {
          const auto bits = static_cast<std::uint16_t>(first + static_cast<std::uint32_t>(d));
          v[d] = bits;
          // The same value, or one whose sum with it is exact in f32.
          v[kWidth + d] = rng() % 2 == 0 ? bits : static_cast<std::uint16_t>(bits ^ (rng() & 0x3f));
        }
        sdpa(device, x, p);
        for (std::int64_t d = 0; d < kWidth; ++d) {
          const float mean = (widen(v[d]) + widen(v[kWidth + d])) * 0.5f;
          const std::uint16_t got = x.out.host<std::uint16_t>()[d];
          const bool may_flush = !is_f16 && std::fabs(mean) < 0x1p-125f;
          INFO(isa, " ", name_of(dtype), " bits ", v[d], " and ", v[kWidth + d]);
          if (std::isnan(mean)) {
            REQUIRE(std::isnan(widen(got)));
          } else if (mean == 0 || (may_flush && (got & 0x7fff) == 0)) {
            REQUIRE((got & 0x7fff) == 0);  // sums start at +0, which hides the sign of a zero
          } else if (std::isfinite(mean)) {
            REQUIRE(got == narrow(mean));
          }
        }
      }
    }
  }
}
