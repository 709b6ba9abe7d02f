// Rows whose values, scores or sums are at the edge of what f32 holds, and rows beside them: what a
// row does not see never reaches it, and what it sees gives what float64 gives.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu_kernels.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kMost = std::numeric_limits<float>::max();
constexpr const char* kKernels[] = {"sdpa", "sdpa_decode", "sdpa_prefill"};

/// Calls run(device, kernel, dtype) for all there are.
template <typename Run>
void for_each_kernel(const Run& run) {
  for (const std::string& isa : isas()) {
    for (const char* kernel : kKernels) {
      for (const DType dtype : kDTypes) {
        INFO(isa, " ", kernel, " ", name_of(dtype));
        run(device_of(isa), kernel, dtype);
      }
    }
  }
}

SdpaOperands operands_for(const Device& device, const SdpaProblem& p, std::mt19937& rng) {
  SdpaOperands x = poisoned_operands(device, p);
  for (const Buffer& buffer : {x.q, x.k, x.v}) fill_normal(buffer, rng, 1);
  return x;
}

void fill_row(const Buffer& buffer, std::int64_t row, std::int64_t width, float value) {
  for (std::int64_t d = 0; d < width; ++d) {
    set_element(buffer, static_cast<std::size_t>(row * width + d), value);
  }
}

/// Scores of `score` for every row and key: q = (1, 0, ...), k = (score, 0, ...), scale 1.
void give_all_scores(SdpaProblem& p, const SdpaOperands& x, float score) {
  p.scale = 1;
  for (std::int64_t i = 0; i < p.n_heads * p.seq_len; ++i) {
    fill_row(x.q, i, p.head_dim, 0);
    set_element(x.q, static_cast<std::size_t>(i * p.head_dim), 1);
  }
  for (std::int64_t j = 0; j < p.kv_len; ++j) {
    fill_row(x.k, j, p.head_dim, 0);
    set_element(x.k, static_cast<std::size_t>(j * p.head_dim), score);
  }
}

float out_at(const SdpaProblem& p, const SdpaOperands& x, std::int64_t row, std::int64_t d) {
  return get_element(x.out, static_cast<std::size_t>(row * p.value_dim + d));
}

/// Keys hidden from row i of a problem with kv_len == seq_len + 30: those from i + 31 on.
std::int64_t visible_keys(const SdpaProblem& p, std::int64_t i) {
  return p.kv_len - p.seq_len + i + 1;
}

}  // namespace

TEST_CASE("finite scores of any size give finite rows") {
  std::mt19937 rng(1);
  for_each_kernel([&](const Device& device, const char* kernel, DType dtype) {
    if (dtype == DType::f16) return;  // its scores stay far below
    for (const std::int64_t keys : {2, 70, 1100}) {
      for (const float score : {2.3e38f, 2.5e38f, 3.3e38f, -2.5e38f, -3.3e38f, -0x1.fp127f}) {
        for (const std::int64_t rows : {1, 19}) {
          SdpaProblem p = problem_of(kernel, dtype, 1, rows, keys, 8, 12);
          const SdpaOperands x = operands_for(device, p, rng);
          give_all_scores(p, x, score);
          INFO("score ", score, " keys ", keys, " rows ", rows);
          CHECK(error_of_run(device, p, x) <= 1.0);
          // float64's answer is the mean, which the bound alone, growing with the score, allows
          // to be missed by anything.
          for (std::int64_t d = 0; d < p.value_dim; ++d) {
            double mean = 0;
            double size = 0;
            for (std::int64_t j = 0; j < keys; ++j) {
              const double v = get_element(x.v, static_cast<std::size_t>(j * p.value_dim + d));
              mean += v / static_cast<double>(keys);
              size += std::fabs(v) / static_cast<double>(keys);
            }
            const double unit = dtype == DType::f32 ? 0x1p-24 : 0x1p-8;
            CHECK(std::fabs(out_at(p, x, rows - 1, d) - mean) <= 32 * unit * size);
          }
          CHECK(x.lse.host<float>()[rows - 1] ==
                doctest::Approx(get_element(x.k, 0)).epsilon(1e-6));
        }
      }
    }
  });
}

TEST_CASE("one key above all others by more than f32 holds takes the row") {
  std::mt19937 rng(2);
  for_each_kernel([&](const Device& device, const char* kernel, DType dtype) {
    if (dtype == DType::f16) return;
    SdpaProblem p = problem_of(kernel, dtype, 1, 3, 600, 8, 8);
    const SdpaOperands x = operands_for(device, p, rng);
    for (const std::int64_t top : {0, 255, 599}) {
      give_all_scores(p, x, -3.3e38f);
      set_element(x.k, static_cast<std::size_t>(top * p.head_dim), 3.3e38f);
      sdpa(device, x, p);
      for (std::int64_t d = 0; d < p.value_dim; ++d) {
        CHECK(out_at(p, x, 2, d) ==
              get_element(x.v, static_cast<std::size_t>(top * p.value_dim + d)));
      }
    }
  });
}

TEST_CASE("what a row does not see never reaches it") {
  std::mt19937 rng(3);
  for_each_kernel([&](const Device& device, const char* kernel, DType dtype) {
    for (const std::int64_t rows : {2, 13, 40}) {
      SdpaProblem p = problem_of(kernel, dtype, 1, rows, rows + 30, 24, 20);
      p.causal = true;
      p.q_start = p.kv_len - p.seq_len;
      const SdpaOperands x = operands_for(device, p, rng);
      const Reference clean = reference_sdpa(p, x);
      for (const float poison : {kNan, kInf, -kInf}) {
        for (const bool in_keys : {false, true}) {
          const std::int64_t at =
              31 + static_cast<std::int64_t>(rng() % static_cast<unsigned>(rows - 1));
          const Buffer& to = in_keys ? x.k : x.v;
          const std::int64_t width = in_keys ? p.head_dim : p.value_dim;
          const std::vector<std::uint8_t> before = bytes_of(to);
          fill_row(to, at, width, poison);
          sdpa(device, x, p);
          std::memcpy(to.data(), before.data(), before.size());

          // Rows that see the poison are left out of the comparison, but a NaN must show in them.
          SdpaProblem head = p;
          head.seq_len = at - (p.kv_len - p.seq_len);
          INFO("rows ", rows, " poison ", poison, " in keys ", in_keys, " at ", at);
          CHECK(worst_error(head, x, clean) <= 1.0);
          for (std::int64_t i = head.seq_len; i < rows && std::isnan(poison); ++i) {
            CHECK(visible_keys(p, i) > at);
            CHECK(std::isnan(out_at(p, x, i, 5)));
          }
        }
      }
    }
  });
}

TEST_CASE("a row that sees no key is 0 beside poisoned ones") {
  std::mt19937 rng(4);
  for_each_kernel([&](const Device& device, const char* kernel, DType dtype) {
    SdpaProblem p = problem_of(kernel, dtype, 1, 9, 5, 16, 16);
    p.causal = true;
    p.q_start = -4;  // rows 0 to 3 see nothing
    const SdpaOperands x = operands_for(device, p, rng);
    for (std::int64_t j = 0; j < p.kv_len; ++j) fill_row(x.v, j, p.value_dim, kNan);
    sdpa(device, x, p);
    for (std::int64_t i = 0; i < 4; ++i) {
      for (std::int64_t d = 0; d < p.value_dim; ++d) CHECK(out_at(p, x, i, d) == 0);
      CHECK(x.lse.host<float>()[i] == -kInf);
    }
    CHECK(std::isnan(out_at(p, x, 4, 0)));
  });
}

TEST_CASE("a key whose score is -inf counts as hidden") {
  std::mt19937 rng(5);
  for_each_kernel([&](const Device& device, const char* kernel, DType dtype) {
    SdpaProblem p = problem_of(kernel, dtype, 1, 3, 40, 8, 8);
    const SdpaOperands x = operands_for(device, p, rng);
    for (std::int64_t i = 0; i < p.seq_len; ++i) {
      set_element(x.q, static_cast<std::size_t>(i * p.head_dim), 1.0f);
    }
    const Reference all = reference_sdpa(p, x);
    set_element(x.k, static_cast<std::size_t>(17 * p.head_dim), -kInf);
    fill_row(x.v, 17, p.value_dim, kNan);
    sdpa(device, x, p);
    for (std::int64_t i = 0; i < p.seq_len; ++i) {
      CHECK(std::isfinite(out_at(p, x, i, 3)));
      CHECK(static_cast<double>(x.lse.host<float>()[i]) < all.lse[static_cast<std::size_t>(i)]);
    }
  });
}

TEST_CASE("values near the largest float have their mean") {
  std::mt19937 rng(6);
  for_each_kernel([&](const Device& device, const char* kernel, DType dtype) {
    for (const std::int64_t rows : {1, 30}) {
      SdpaProblem p = problem_of(kernel, dtype, 1, rows, 300, 16, 9);
      const SdpaOperands x = operands_for(device, p, rng);
      const float large = dtype == DType::f16   ? 65504.0f
                          : dtype == DType::f32 ? kMost
                                                : 0x1.fep127f;
      for (std::int64_t j = 0; j < p.kv_len; ++j) {
        fill_row(x.v, j, p.value_dim, large);
        set_element(x.v, static_cast<std::size_t>(j * p.value_dim + 2), -large);
      }
      sdpa(device, x, p);
      for (std::int64_t d = 0; d < p.value_dim; ++d) {
        const double want = d == 2 ? -large : large;
        CHECK(out_at(p, x, 0, d) == doctest::Approx(want).epsilon(1e-6));
      }
    }
  });
}

TEST_CASE("an infinite value that a row sees gives what float64 gives") {
  std::mt19937 rng(7);
  for_each_kernel([&](const Device& device, const char* kernel, DType dtype) {
    SdpaProblem p = problem_of(kernel, dtype, 1, 2, 50, 16, 8);
    const SdpaOperands x = operands_for(device, p, rng);
    set_element(x.v, static_cast<std::size_t>(7 * p.value_dim + 1), kInf);
    set_element(x.v, static_cast<std::size_t>(9 * p.value_dim + 2), -kInf);
    set_element(x.v, static_cast<std::size_t>(8 * p.value_dim + 3), kInf);
    set_element(x.v, static_cast<std::size_t>(9 * p.value_dim + 3), -kInf);
    sdpa(device, x, p);
    CHECK(out_at(p, x, 0, 1) == kInf);
    CHECK(out_at(p, x, 0, 2) == -kInf);
    CHECK(std::isnan(out_at(p, x, 0, 3)));
    CHECK(std::isfinite(out_at(p, x, 0, 4)));
  });
}

TEST_CASE("maxima that move from span to span leave no rounding behind") {
  // Scores rise by a little with every span: each step rescales what came before.
  std::mt19937 rng(8);
  for (const std::string& isa : isas()) {
    for (const char* kernel : kKernels) {
      const Device device = device_of(isa);
      SdpaProblem p = problem_of(kernel, DType::f32, 1, 1, 1 << 17, 1, 1);
      p.scale = 1;
      const SdpaOperands x = operands_for(device, p, rng);
      set_element(x.q, 0, 1);
      const float step = 0x1.23456p-20f;
      for (std::int64_t j = 0; j < p.kv_len; ++j) {
        set_element(x.k, static_cast<std::size_t>(j), static_cast<float>(j) * step);
        set_element(x.v, static_cast<std::size_t>(j), 1);
      }
      INFO(isa, " ", kernel);
      CHECK(error_of_run(device, p, x) <= 1.0);
    }
  }
}

TEST_CASE("a NaN that a row sees makes it NaN, also as all that it sees of a span") {
  std::mt19937 rng(9);
  for_each_kernel([&](const Device& device, const char* kernel, DType dtype) {
    for (const std::int64_t keys : {65, 129, 257, 513, 1025, 2049}) {
      for (const std::int64_t rows : {1, 60}) {
        SdpaProblem p = problem_of(kernel, dtype, 1, rows, keys, 8, 8);
        const SdpaOperands x = operands_for(device, p, rng);
        for (const std::int64_t at : {keys - 1, std::int64_t{0}}) {
          const std::vector<std::uint8_t> before = bytes_of(x.k);
          fill_row(x.k, at, p.head_dim, kNan);
          sdpa(device, x, p);
          std::memcpy(x.k.data(), before.data(), before.size());
          INFO("keys ", keys, " rows ", rows, " at ", at);
          CHECK(std::isnan(out_at(p, x, rows - 1, 3)));
          CHECK(std::isnan(x.lse.host<float>()[rows - 1]));
        }
      }
    }
  });
}

TEST_CASE("spans whose largest scores differ by any number") {
  // Equal values: the row is that value whatever the weights are.
  std::mt19937 rng(10);
  std::uniform_real_distribution<float> exponent(0, 127.5f);
  for (const std::string& isa : isas()) {
    for (const char* kernel : kKernels) {
      const Device device = device_of(isa);
      for (int round = 0; round < 300; ++round) {
        SdpaProblem p = problem_of(kernel, DType::f32, 1, 1, 2600, 1, 1);
        p.scale = 1;
        const SdpaOperands x = operands_for(device, p, rng);
        set_element(x.q, 0, 1);
        const bool is_signed = round % 2 == 1;
        const float most = round % 3 == 0 ? 127.5f : exponent(rng);
        for (std::int64_t begin = 0; begin < p.kv_len; begin += 512) {
          float score = std::exp2(most - exponent(rng) / 40);
          if (is_signed && rng() % 2 == 0) score = -score;
          for (std::int64_t j = begin; j < std::min(begin + 512, p.kv_len); ++j) {
            set_element(x.k, static_cast<std::size_t>(j), score);
            set_element(x.v, static_cast<std::size_t>(j), 1e-30f);
          }
        }
        sdpa(device, x, p);
        INFO(isa, " ", kernel, " round ", round);
        CHECK(out_at(p, x, 0, 0) == doctest::Approx(1e-30).epsilon(1e-5));
        float largest = -kInf;
        for (std::int64_t j = 0; j < p.kv_len; ++j) {
          largest = std::max(largest, get_element(x.k, static_cast<std::size_t>(j)));
        }
        const double want = std::max<double>(std::fabs(largest), 1);
        CHECK(std::fabs(x.lse.host<float>()[0] - largest) <= 1e-6 * want + 8);
      }
    }
  }
}

TEST_CASE("a scale of any finite size") {
  std::mt19937 rng(11);
  for_each_kernel([&](const Device& device, const char* kernel, DType dtype) {
    for (const std::int64_t rows : {1, 30}) {
      SdpaProblem p = problem_of(kernel, dtype, 1, rows, 3, 8, 8);
      const SdpaOperands x = operands_for(device, p, rng);
      fill_bytes(x.q, 0);
      for (const float scale : {2e38f, 3e38f, -kMost}) {
        p.scale = scale;
        sdpa(device, x, p);
        CHECK(x.lse.host<float>()[rows - 1] == doctest::Approx(std::log(3.0)));
        CHECK(std::isfinite(out_at(p, x, rows - 1, 1)));
      }
    }
  });
}
