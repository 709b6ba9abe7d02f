// sdpa_decode on every instruction set that this machine runs.
#include "cpu/fast/sdpa_decode.h"

#include <string>
#include <vector>

#include "cpu/fast/support.h"
#include "cpu_kernels.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

SdpaProblem decode_problem(DType dtype, std::int64_t group, std::int64_t rows, std::int64_t keys,
                           std::int64_t width) {
  SdpaProblem p = problem_of("sdpa_decode", dtype, group, rows, keys, width, width);
  p.causal = true;
  return p;
}

/// The first n elements, to where those of sequence 1 begin.
void copy_elements(const Buffer& from, const Buffer& to, std::int64_t n, std::int64_t begin) {
  for (std::int64_t i = 0; i < n; ++i) {
    set_element(to, static_cast<std::size_t>(begin + i),
                get_element(from, static_cast<std::size_t>(i)));
  }
}

/// Whether `device` writes what stands in the output.
bool gives_same_bits(const Device& device, const SdpaProblem& p, const SdpaOperands& x) {
  const std::vector<std::uint8_t> want = bytes_of(x.out);
  fill_bytes(x.out, 0xff);
  sdpa(device, x, p);
  return bytes_of(x.out) == want;
}

}  // namespace

TEST_CASE("the planner takes sdpa_decode for a few rows under a KV head") {
  struct Edge {
    DType dtype;
    std::int64_t group;
    std::int64_t seq_len;
    const char* isa;  ///< nullptr: every one
    bool decodes;
  };
  const std::vector<Edge> edges{
      {DType::f32, 4, 4, nullptr, true},          {DType::f32, 4, 13, nullptr, false},
      {DType::f32, 4, 12, "avx512", true},        {DType::f32, 4, 6, "avx2", false},
      {DType::f16, 1, 8, nullptr, true},          {DType::f16, 1, 49, nullptr, false},
      {DType::f16, 1, 48, "avx512_bf16", true},   {DType::f16, 1, 20, "avx2", true},
      {DType::f16, 1, 21, "avx2", false},         {DType::f16, 1, 9, "baseline", false},
      {DType::f32, 24, 1, "baseline", true},      {DType::bf16, 16, 1, "baseline", true},
      {DType::bf16, 1, 48, "avx512", true},       {DType::bf16, 1, 16, "avx512_bf16", true},
      {DType::bf16, 1, 17, "avx512_bf16", false}, {DType::bf16, 32, 1, "avx512_bf16", false},
      {DType::bf16, 8, 1, "amx_emulated", true},  {DType::bf16, 3, 3, "amx_emulated", false},
      {DType::f16, 48, 1, "amx_emulated", true},  {DType::f32, 49, 1, nullptr, false},
  };
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa);
    for (const Edge& edge : edges) {
      if (edge.isa != nullptr && isa != edge.isa) continue;
      SdpaProblem p = decode_problem(edge.dtype, edge.group, edge.seq_len, 300, 64);
      p.kernel.clear();
      const std::string kernel = plan_sdpa(device, p).steps.front().kernel;
      INFO(isa, " ", name_of(edge.dtype), " group ", edge.group, " L ", edge.seq_len);
      CHECK(kernel.starts_with(edge.decodes ? "sdpa_decode" : "sdpa_prefill"));
    }
  }
}

TEST_CASE("random problems are within the bounds, with the same bits on two threads") {
  for (const std::string& isa : isas()) {
    const Device one = device_of(isa);
    const Device two = device_of(isa, 2);
    std::mt19937 rng(20240612);
    for (int round = 0; round < 150; ++round) {
      SdpaProblem p = random_problem(rng, {});
      p.kernel = "sdpa_decode";
      const SdpaOperands x = random_operands(rng, one, p);
      INFO(isa, " round ", round, " dtype ", name_of(p.dtype));
      REQUIRE(error_of_run(one, p, x) <= 1.0);
      REQUIRE(gives_same_bits(two, p, x));
    }
  }
}

TEST_CASE("groups, rows, widths and lengths around the edges of spans") {
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa, 2);
    std::mt19937 rng(7);
    for (const DType dtype : kDTypes) {
      for (const std::int64_t keys : {1, 31, 33, 511, 512, 513, 1025}) {
        for (const std::int64_t group : {1, 2, 3, 4, 5, 7, 8, 16}) {
          const SdpaProblem p = decode_problem(dtype, group, 1, keys, group == 5 ? 40 : 8);
          const SdpaOperands x = random_operands(rng, device, p);
          INFO(isa, " S ", keys, " group ", group, " ", name_of(dtype));
          CHECK(error_of_run(device, p, x) <= 1.0);
        }
        SdpaProblem p = decode_problem(dtype, 2, 9, keys, 72);
        const SdpaOperands x = random_operands(rng, device, p);
        INFO(isa, " S ", keys, " L 9 ", name_of(dtype));
        CHECK(error_of_run(device, p, x) <= 1.0);
        p.q_start = -4;
        CHECK(error_of_run(device, p, x) <= 1.0);
      }
    }
  }
}

TEST_CASE("tiles of any number of rows, and what is left of a unit and of a vector") {
  const std::vector<std::int64_t> widths{1, 3, 4, 5, 7, 8, 12, 17, 20, 31, 36, 44, 63, 75, 100};
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa, 2);
    std::mt19937 rng(13);
    for (const DType dtype : kDTypes) {
      for (std::int64_t rows = 1; rows <= 36; ++rows) {
        for (std::size_t i = static_cast<std::size_t>(rows) % 3; i < widths.size(); i += 3) {
          SdpaProblem p = decode_problem(dtype, 1, rows, 37 + rows, widths[i]);
          p.value_dim = widths[widths.size() - 1 - i];
          p.set_packed_layouts();
          const SdpaOperands x = random_operands(rng, device, p);
          INFO(isa, " ", name_of(dtype), " rows ", rows, " D ", p.head_dim, " Dv ", p.value_dim);
          CHECK(error_of_run(device, p, x) <= 1.0);
        }
      }
    }
  }
}

TEST_CASE("many spans, of which only the last row sees the last one") {
  for (const std::string& isa : isas()) {
    const Device one = device_of(isa);
    const Device two = device_of(isa, 2);
    std::mt19937 rng(17);
    // Spans of 512 keys at this width. The last row sees one key of the last span.
    for (const std::int64_t spans : {2, 3, 35}) {
      const SdpaProblem p = decode_problem(DType::f32, 2, 3, (spans - 1) * 512 + 1, 8);
      const SdpaOperands x = random_operands(rng, one, p);
      INFO(isa, " spans ", spans);
      CHECK(error_of_run(one, p, x) <= 1.0);
      CHECK(gives_same_bits(two, p, x));
    }
  }
}

TEST_CASE("a sequence has the same bits alone, in a batch and with more room") {
  const std::int64_t row = 40;
  for (const std::string& isa : isas()) {
    const Device one = device_of(isa);
    const Device two = device_of(isa, 2);
    std::mt19937 rng(9);
    for (const DType dtype : kDTypes) {
      for (const std::int64_t group : {1, 3, 4, 13, 16}) {
        INFO(isa, " ", name_of(dtype), " group ", group);
        const SdpaProblem alone = decode_problem(dtype, group, 1, 1300, row);
        const SdpaOperands x = random_operands(rng, one, alone);
        sdpa(one, x, alone);
        SdpaProblem batch = alone;
        batch.batch = 3;
        batch.kv_capacity = 2000;
        batch.kv_lengths = {0, 1300, 7};
        batch.set_packed_layouts();
        const SdpaOperands y = random_operands(rng, two, batch);
        copy_elements(x.q, y.q, group * row, group * row);
        copy_elements(x.k, y.k, 1300 * row, 2000 * row);
        copy_elements(x.v, y.v, 1300 * row, 2000 * row);
        sdpa(two, y, batch);
        const std::vector<std::uint8_t> a = bytes_of(x.out);
        const std::vector<std::uint8_t> b = bytes_of(y.out);
        CHECK(std::equal(a.begin(), a.end(), b.begin() + static_cast<std::ptrdiff_t>(a.size())));
        CHECK(y.lse.host<float>()[group] == x.lse.host<float>()[0]);
      }
    }
  }
}

TEST_CASE("nothing is read behind the last key and value, and how they come near is not seen") {
  const int suits_this_processor = cpu::most_slots_to_load;
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa, 2);
    std::mt19937 rng(11);
    for (const DType dtype : kDTypes) {
      for (const std::int64_t width : {36, 40, 512}) {
        for (const std::int64_t keys : {9, 65, 200}) {
          for (const std::int64_t rows : {1, 2, 4, 9, 12, 16}) {
            const SdpaProblem p = decode_problem(dtype, rows, 1, keys, width);
            SdpaOperands x = random_operands(rng, device, p);
            x.k = before_a_wall(device, x.k);
            x.v = before_a_wall(device, x.v);
            INFO(isa, " ", name_of(dtype), " D ", width, " S ", keys, " rows ", rows);
            cpu::most_slots_to_load = cpu::kMostSlotsToLoad;
            CHECK(error_of_run(device, p, x) <= 1.0);
            cpu::most_slots_to_load = 0;
            CHECK(gives_same_bits(device, p, x));
          }
        }
      }
    }
  }
  cpu::most_slots_to_load = suits_this_processor;
}
