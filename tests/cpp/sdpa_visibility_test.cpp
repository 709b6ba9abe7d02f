// Which keys reach a row, on every kernel family and instruction set of this machine: edges of
// tiles, blocks and spans, what hidden slots hold, and calls that have to give the bits of others.
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "cpu_kernels.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

constexpr std::array<const char*, 3> kKernels{"sdpa", "sdpa_decode", "sdpa_prefill"};

template <typename Run>
void for_each_kernel(SdpaProblem& problem, const Run& run) {
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa);
    for (const char* kernel : kKernels) {
      problem.kernel = kernel;
      INFO("isa ", isa, " kernel ", problem.kernel, " dtype ", name_of(problem.dtype));
      run(device);
    }
  }
}

void check_all(SdpaProblem problem, const SdpaOperands& x) {
  const Reference reference = reference_sdpa(problem, x);
  for_each_kernel(problem, [&](const Device& device) {
    fill_bytes(x.out, 0xff);
    sdpa(device, x, problem);
    REQUIRE(worst_error(problem, x, reference) <= 1.0);
  });
}

std::vector<std::uint8_t> bits_of_run(const Device& device, const SdpaProblem& p,
                                      const SdpaOperands& x) {
  fill_bytes(x.out, 0xff);
  fill_bytes(x.lse, 0xff);
  sdpa(device, x, p);
  std::vector<std::uint8_t> bits = bytes_of(x.out);
  const std::vector<std::uint8_t> lse = bytes_of(x.lse);
  bits.insert(bits.end(), lse.begin(), lse.end());
  return bits;
}

/// Two query heads under a KV head, packed.
SdpaProblem packed_problem(DType dtype, std::int64_t rows, std::int64_t keys, std::int64_t width) {
  SdpaProblem p = problem_of("", dtype, 2, rows, keys, width, width);
  p.n_heads = 4;
  p.n_kv_heads = 2;
  p.set_packed_layouts();
  return p;
}

Buffer mask_of(const Device& device, SdpaProblem& p, DType dtype, float value) {
  p.mask = MaskLayout{dtype, 0, 0, 0, p.kv_capacity, 1};
  const Buffer mask = device.empty({p.seq_len, p.kv_capacity}, dtype);
  for (std::size_t i = 0; i < mask.element_count(); ++i) {
    if (dtype == DType::u8) mask.host<std::uint8_t>()[i] = value != 0 ? 1 : 0;
    if (dtype != DType::u8) set_element(mask, i, value);
  }
  return mask;
}

/// Slots of K or V that `is_poisoned` names hold `value`.
template <typename IsPoisoned>
void poison(const SdpaProblem& p, const Buffer& rows, float value, const IsPoisoned& is_poisoned) {
  for (std::int64_t h = 0; h < p.n_kv_heads; ++h) {
    for (std::int64_t j = 0; j < p.kv_capacity; ++j) {
      if (!is_poisoned(j)) continue;
      const std::int64_t row = (h * p.kv_capacity + j) * p.head_dim;
      for (std::int64_t d = 0; d < p.head_dim; ++d) {
        set_element(rows, static_cast<std::size_t>(row + d), value);
      }
    }
  }
}

constexpr std::array<float, 4> kPoisons{NAN, INFINITY, -INFINITY, 3e38f};

}  // namespace

TEST_CASE("a key more or less at every edge of blocks and spans") {
  std::mt19937 rng(1);
  const Device device("cpu");
  for (const std::int64_t edge : {4, 6, 8, 12, 16, 32, 64, 256, 512, 768, 1024, 1280}) {
    for (const std::int64_t begin : {edge - 1, edge, edge + 1}) {
      SdpaProblem p = packed_problem(kDTypes[static_cast<std::size_t>(edge / 2 % 3)], 3, 1400, 4);
      p.causal = true;
      p.q_start = begin + 20;
      p.window_left = 20;  // row 0 sees begin..begin + 20
      check_all(p, random_operands(rng, device, p));
      p.window_left = Visibility::kUnlimited;
      p.kv_start = begin;
      p.q_start = begin - 1;  // row 0 sees nothing, row 1 one key
      check_all(p, random_operands(rng, device, p));
      p.causal = false;
      p.q_start.reset();
      p.kv_len = begin + 1;
      check_all(p, random_operands(rng, device, p));
    }
  }
}

TEST_CASE("windows and query lengths around tiles of rows") {
  std::mt19937 rng(2);
  const Device device("cpu");
  for (const std::int64_t rows : {1, 2, 5, 6, 7, 11, 12, 13, 31, 97, 200}) {
    for (const std::int64_t left : {0, 1, 5, 63}) {
      SdpaProblem p = packed_problem(kDTypes[static_cast<std::size_t>(rows % 3)], rows, 230, 8);
      p.window_left = left;
      p.window_right = left % 3;
      check_all(p, random_operands(rng, device, p));
      p.query_len = rows / 2;
      check_all(p, random_operands(rng, device, p));
    }
  }
}

TEST_CASE("what stands in slots that a row does not see never reaches it") {
  std::mt19937 rng(3);
  const Device device("cpu");
  for (const float value : kPoisons) {
    for (const DType dtype : kDTypes) {
      SdpaProblem p = packed_problem(dtype, 9, 600, 16);
      p.kv_len = 560;
      p.kv_start = 70;
      p.causal = true;
      p.window_left = 300;  // row 0, at 551, sees from 251 on
      const SdpaOperands x = random_operands(rng, device, p);
      poison(p, x.k, value, [](std::int64_t j) { return j < 251 || j > 559; });
      poison(p, x.v, value,
             [](std::int64_t j) { return j < 255 || j > 556; });  // some rows see some
      check_all(p, x);
    }
  }
}

TEST_CASE("what stands behind a mask never reaches a row, be it boolean or -inf") {
  std::mt19937 rng(4);
  const Device device("cpu");
  for (const float value : kPoisons) {
    for (const DType dtype : kDTypes) {
      for (const DType mask_dtype : {DType::u8, DType::f32, DType::f16, DType::bf16}) {
        SdpaProblem p = packed_problem(dtype, 7, 600, 16);
        SdpaOperands x = random_operands(rng, device, p);
        x.mask = mask_of(device, p, mask_dtype, 1);
        const auto hide = [&](std::int64_t i, std::int64_t j) {
          const auto at = static_cast<std::size_t>(i * p.kv_capacity + j);
          if (mask_dtype == DType::u8) x.mask.host<std::uint8_t>()[at] = 0;
          if (mask_dtype != DType::u8) set_element(x.mask, at, -INFINITY);
        };
        for (std::int64_t j = 0; j < 600; ++j) {
          const bool is_poisoned = j % 50 == 7 || (j >= 256 && j < 512);
          for (std::int64_t i = 0; i < 7; ++i) {
            if (is_poisoned || i == 5) hide(i, j);  // row 5 sees nothing
          }
        }
        for (const Buffer& rows : {x.k, x.v}) {
          poison(p, rows, value,
                 [](std::int64_t j) { return j % 50 == 7 || (j >= 256 && j < 512); });
        }
        check_all(p, x);
      }
    }
  }
}

TEST_CASE("mask entries of keys that a row does not reach are not looked at") {
  std::mt19937 rng(5);
  const Device device("cpu");
  for (const float value : {NAN, INFINITY, -INFINITY}) {
    SdpaProblem p = packed_problem(DType::f32, 9, 600, 16);
    p.causal = true;
    p.window_left = 40;
    SdpaOperands x = random_operands(rng, device, p);
    x.mask = mask_of(device, p, DType::f32, value);
    for (std::int64_t i = 0; i < 9; ++i) {
      for (std::int64_t j = 0; j < 600; ++j) {
        const bool is_reached = is_in_reach(p, 0, i, j);
        if (is_reached) set_element(x.mask, static_cast<std::size_t>(i * 600 + j), 0.01f * i);
      }
    }
    check_all(p, x);
    set_element(x.mask, 4 * 600 + 590, value);  // in reach of row 4 of every head
    check_all(p, x);
  }
}

TEST_CASE("features that change nothing give the bits of the plain call") {
  std::mt19937 rng(6);
  const Device device("cpu");
  for (const DType dtype : kDTypes) {
    for (const std::int64_t rows : {1, 3, 70}) {
      SdpaProblem plain = packed_problem(dtype, rows, 1100, 24);
      plain.causal = rows != 3;
      SdpaOperands x = random_operands(rng, device, plain);
      const auto check = [&](const SdpaProblem& same, const char* what) {
        SdpaProblem given = same;
        for_each_kernel(given, [&](const Device& on) {
          plain.kernel = given.kernel;
          INFO(what, " rows ", rows);
          REQUIRE(bits_of_run(on, given, x) == bits_of_run(on, plain, x));
        });
      };
      SdpaProblem p = plain;
      p.window_left = 1100 + rows;
      check(p, "a window wider than the cache");
      p = plain;
      p.kv_starts = {0};
      check(p, "kv_starts 0");
      p = plain;
      p.query_lengths = {rows};
      check(p, "all rows in use");
      for (const DType mask : {DType::u8, DType::f32, DType::f16, DType::bf16}) {
        p = plain;
        x.mask = mask_of(device, p, mask, mask == DType::u8 ? 1 : 0);
        check(p, "an all-True mask or a zero bias");
      }
    }
  }
}

TEST_CASE("rows out of use change no bit of the others") {
  std::mt19937 rng(7);
  const Device device("cpu");
  for (const DType dtype : kDTypes) {
    for (const std::int64_t n : {1, 2, 5, 40}) {
      SdpaProblem alone = packed_problem(dtype, n, 700, 16);
      alone.n_heads = alone.n_kv_heads = 1;
      alone.causal = true;
      alone.set_packed_layouts();
      const SdpaOperands x = random_operands(rng, device, alone);
      SdpaProblem longer = alone;
      longer.seq_len = n + 13;
      longer.query_len = n;
      longer.set_packed_layouts();
      const SdpaOperands y = poisoned_operands(device, longer);
      std::memcpy(y.q.data(), x.q.data(), x.q.byte_len());
      std::memcpy(y.k.data(), x.k.data(), x.k.byte_len());
      std::memcpy(y.v.data(), x.v.data(), x.v.byte_len());
      for (const char* kernel : {"", "sdpa", "sdpa_decode", "sdpa_prefill"}) {
        for (const std::string& isa : isas()) {
          alone.kernel = longer.kernel = kernel;
          INFO("isa ", isa, " kernel '", alone.kernel, "' n ", n);
          sdpa(device_of(isa), x, alone);
          sdpa(device_of(isa), y, longer);
          REQUIRE(std::memcmp(x.out.data(), y.out.data(), x.out.byte_len()) == 0);
          for (std::int64_t i = 0; i < 13; ++i) {
            const auto row = static_cast<std::size_t>(n + i);
            REQUIRE(get_element(y.out, row * 16) == 0);
            REQUIRE(y.lse.host<float>()[row] == -INFINITY);
          }
        }
      }
    }
  }
}
