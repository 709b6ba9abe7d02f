// Attention on Metal where K and V hold NaN and infinities: what a row does not see never reaches
// it, and what it sees gives what float64 gives.
#include <cmath>
#include <limits>
#include <utility>

#include "metal_problems.h"
#include "oracle.h"
#include "problems.h"

namespace metal_sdpa::test {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// One span and several, shared rows and not, slices, groups that do not divide a tile, rows that
// stand before key 0.
constexpr Case kCases[] = {
    {1, 4, 2, 5, 65, 70, 64, 64, true},     {1, 7, 1, 9, 40, 40, 32, 32, true},
    {2, 3, 3, 70, 80, 84, 32, 32, true},    {1, 2, 1, 3, 300, 300, 64, 64, true},
    {1, 2, 1, 4, 70, 70, 128, 128, true},   {1, 2, 1, 4, 50, 50, 256, 256, true},
    {1, 2, 1, 12, 33, 40, 96, 96, true},    {1, 2, 1, 12, 9, 9, 8, 8, true},
    {1, 2, 1, 6, 300, 300, 128, 128, true}, {1, 2, 1, 5, 40, 40, 20, 20, true},
};

std::size_t row_start(const TensorLayout& layout, std::int64_t b, std::int64_t h, std::int64_t i) {
  return static_cast<std::size_t>(layout.offset + b * layout.batch_stride + h * layout.head_stride +
                                  i * layout.row_stride);
}

/// Puts `value` into element `d` of row `key` under every KV head (every element: d is -1).
void poison(const SdpaProblem& p, const Buffer& cache, const TensorLayout& layout, std::int64_t key,
            std::int64_t width, std::int64_t d, float value) {
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t h = 0; h < p.n_kv_heads; ++h) {
      for (std::int64_t e = 0; e < width; ++e) {
        if (d >= 0 && e != d) continue;
        set_element(cache, row_start(layout, b, h, key) + static_cast<std::size_t>(e), value);
      }
    }
  }
}

/// What the result of a row that sees the poisoned key is to be.
enum class Seen { nan, special_columns };

/// Rows that see `key` hold what `seen` says (columns 0, 1, 2 are NaN, inf, -inf); they are then
/// made right, so that all others and the rest of these can be compared with the reference.
bool settle_seen_rows(const SdpaProblem& p, const SdpaOperands& x, const Reference& clean,
                      std::int64_t key, Seen seen) {
  bool right = true;
  std::size_t row = 0;
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t h = 0; h < p.n_heads; ++h) {
      for (std::int64_t i = 0; i < p.seq_len; ++i, ++row) {
        if (p.causal && key > p.sequence_q_start(b) + i) continue;
        const std::size_t out = row_start(p.out, b, h, i);
        const std::int64_t columns = seen == Seen::nan ? p.value_dim : 3;
        for (std::int64_t d = 0; d < columns; ++d) {
          const std::size_t at = out + static_cast<std::size_t>(d);
          const float got = get_element(x.out, at);
          if (seen == Seen::nan || d == 0) {
            right = right && std::isnan(got);
          } else {
            right = right && got == (d == 1 ? kInfinity : -kInfinity);
          }
          const std::size_t element = row * static_cast<std::size_t>(p.value_dim);
          set_element(x.out, at,
                      static_cast<float>(clean.out[element + static_cast<std::size_t>(d)]));
        }
        if (seen != Seen::nan) continue;
        right = right && std::isnan(x.lse.host<float>()[row]);
        x.lse.host<float>()[row] = static_cast<float>(clean.lse[row]);
      }
    }
  }
  return right;
}

/// Every kernel on `x`, in which `key` is poisoned; `clean` is the reference without poison.
void check_poisoned(const Device& device, SdpaProblem problem, const SdpaOperands& x,
                    const Reference& clean, std::int64_t key, Seen seen) {
  for (const std::string& kernel : kernels_for(device, problem)) {
    problem.kernel = kernel;
    fill_bytes(x.out, 0x3c);
    fill_bytes(x.lse, 0x3c);
    sdpa(device, x, problem);
    INFO(kernel, " ", std::string(dtype_name(problem.dtype)), " L ", problem.seq_len, " kv ",
         problem.kv_len, " D ", problem.head_dim, " key ", key);
    CHECK(settle_seen_rows(problem, x, clean, key, seen));
    CHECK(worst_error(problem, x, clean) <= 1.0);
  }
}

}  // namespace

TEST_CASE("metal hidden: NaN and infinities of a key that a row does not see do not reach it") {
  const Device device("metal");
  std::mt19937 rng(41);
  for (const Case& c : kCases) {
    for (const DType dtype : kDTypes) {
      const SdpaProblem problem = problem_of(c, dtype);
      const SdpaOperands x = random_operands(rng, device, problem);
      const Reference clean = reference_sdpa(problem, x);
      const std::int64_t key = c.kv_len - 1 - (c.seq_len > 4 ? 2 : 0);
      poison(problem, x.v, problem.v, key, c.value_dim, 0, kNaN);
      poison(problem, x.v, problem.v, key, c.value_dim, 1, kInfinity);
      poison(problem, x.v, problem.v, key, c.value_dim, 2, -kInfinity);
      check_poisoned(device, problem, x, clean, key, Seen::special_columns);
      poison(problem, x.k, problem.k, key, c.head_dim, -1, kNaN);
      check_poisoned(device, problem, x, clean, key, Seen::nan);
    }
  }
}

TEST_CASE("metal hidden: a row that sees no key is 0, whatever the keys hold") {
  const Device device("metal");
  std::mt19937 rng(43);
  for (const DType dtype : kDTypes) {
    for (const std::int64_t head_dim : {20, 64, 256}) {
      SdpaProblem problem = problem_of({1, 4, 2, 9, 20, 20, head_dim, head_dim, true}, dtype);
      problem.q_start = -5;  // rows 0 to 4 see nothing, the others what is poisoned
      const SdpaOperands x = random_operands(rng, device, problem);
      fill_bytes(x.k, 0xff);
      fill_bytes(x.v, 0xff);
      for (const std::string& kernel : kernels_for(device, problem)) {
        problem.kernel = kernel;
        fill_bytes(x.out, 0xff);
        sdpa(device, x, problem);
        INFO(kernel, " ", std::string(dtype_name(dtype)), " D ", head_dim);
        for (std::int64_t h = 0; h < 4; ++h) {
          for (std::int64_t i = 0; i < 9; ++i) {
            const float value = get_element(x.out, row_start(problem.out, 0, h, i) + 7);
            CHECK((i < 5 ? value == 0 : std::isnan(value)));
            if (i < 5) CHECK(x.lse.host<float>()[h * 9 + i] == -kInfinity);
          }
        }
      }
    }
  }
}

TEST_CASE("metal hidden: a key whose score is -inf counts as hidden") {
  const Device device("metal");
  std::mt19937 rng(47);
  for (const DType dtype : kDTypes) {
    for (const std::int64_t seq_len : {1, 3, 40}) {
      SdpaProblem problem = problem_of({1, 4, 2, seq_len, 41, 41, 64, 64, false}, dtype);
      const SdpaOperands x = random_operands(rng, device, problem);
      for (std::int64_t h = 0; h < problem.n_heads; ++h) {
        for (std::int64_t i = 0; i < seq_len; ++i) {
          set_element(x.q, row_start(problem.q, 0, h, i), 1.5f);
        }
      }
      SdpaProblem without = problem;
      without.kv_len = 40;
      const Reference clean = reference_sdpa(without, x);
      poison(problem, x.k, problem.k, 40, 64, 0, -kInfinity);
      poison(problem, x.v, problem.v, 40, 64, -1, kNaN);
      for (const std::string& kernel : kernels_for(device, problem)) {
        problem.kernel = kernel;
        sdpa(device, x, problem);
        INFO(kernel, " ", std::string(dtype_name(dtype)), " L ", seq_len);
        CHECK(worst_error(without, x, clean) <= 1.0);
      }
    }
  }
}

TEST_CASE("metal hidden: an infinite value shows through a weight that is too small for a float") {
  const Device device("metal");
  for (const DType dtype : kDTypes) {
    for (const std::int64_t kv_len : {2, 40, 700}) {
      SdpaProblem problem = problem_of({1, 2, 1, 2, kv_len, kv_len, 8, 8, false}, dtype);
      std::mt19937 rng(53);
      const SdpaOperands x = random_operands(rng, device, problem);
      fill_bytes(x.q, 0);
      fill_bytes(x.k, 0);
      problem.scale = 1;
      for (std::size_t row = 0; row < 4; ++row) set_element(x.q, row * 8, 1);
      poison(problem, x.k, problem.k, kv_len - 1, 8, 0, -200);
      poison(problem, x.v, problem.v, kv_len - 1, 8, 5, -kInfinity);
      for (const std::string& kernel : kernels_for(device, problem)) {
        problem.kernel = kernel;
        sdpa(device, x, problem);
        INFO(kernel, " ", std::string(dtype_name(dtype)), " kv ", kv_len);
        for (std::size_t row = 0; row < 4; ++row) {
          CHECK(get_element(x.out, row * 8 + 5) == -kInfinity);
          CHECK(std::isfinite(get_element(x.out, row * 8 + 4)));
        }
      }
    }
  }
}

}  // namespace metal_sdpa::test
