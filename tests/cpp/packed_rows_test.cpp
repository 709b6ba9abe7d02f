// Sequences whose rows stand one behind the other give the bits of each of them alone, and nothing
// else is written, on every kernel family and instruction set of this machine.
#include <array>

#include "batches.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

constexpr std::array<const char*, 4> kKernels{"", "sdpa", "sdpa_decode", "sdpa_prefill"};

struct Packed {
  SdpaProblem problem;
  SdpaOperands operands;
};

/// NaN in rows that are no sequence's.
void poison_gaps(const Buffer& rows, const std::vector<std::int64_t>& firsts,
                 const std::vector<std::int64_t>& lengths, std::int64_t row_stride) {
  std::vector<bool> is_own(rows.element_count(), false);
  for (std::size_t b = 0; b < firsts.size(); ++b) {
    const auto begin = static_cast<std::size_t>(firsts[b] * row_stride);
    const auto n = static_cast<std::size_t>(lengths[b] * row_stride);
    for (std::size_t i = begin; i < begin + n; ++i) is_own[i] = true;
  }
  for (std::size_t i = 0; i < is_own.size(); ++i) {
    if (!is_own[i]) set_element(rows, i, NAN);
  }
}

Packed packed(const Device& device, std::mt19937& rng, DType dtype,
              const std::vector<Sequence>& sequences, const Heads& heads) {
  Packed x{batch_problem(dtype, sequences, heads), {}};
  SdpaProblem& p = x.problem;
  pack_queries(static_cast<std::int64_t>(rng() % 3), p);
  pack_keys(static_cast<std::int64_t>(rng() % 3), p);
  x.operands.q = device.empty({p.q_total, p.n_heads, p.head_dim}, dtype);
  x.operands.k = device.empty({p.kv_total, p.n_kv_heads, p.head_dim}, dtype);
  x.operands.v = device.empty({p.kv_total, p.n_kv_heads, p.value_dim}, dtype);
  x.operands.out = device.empty({p.q_total, p.n_heads, p.value_dim}, dtype);
  x.operands.lse = device.empty({p.n_heads, p.q_total}, DType::f32);
  fill_normal(x.operands.q, rng, 2);
  fill_normal(x.operands.k, rng, 1);
  fill_normal(x.operands.v, rng, 1);
  poison_gaps(x.operands.q, p.q_rows, p.query_lengths, p.q.row_stride);
  poison_gaps(x.operands.k, p.kv_rows, p.kv_lengths, p.k.row_stride);
  poison_gaps(x.operands.v, p.kv_rows, p.kv_lengths, p.v.row_stride);
  return x;
}

/// Every sequence by itself, into memory like the batch's.
SdpaOperands attended_alone(const Device& device, const SdpaProblem& p, const SdpaOperands& x) {
  SdpaOperands whole = x;
  whole.out = device.empty(x.out.shape(), x.out.dtype());
  whole.lse = device.empty(x.lse.shape(), DType::f32);
  fill_bytes(whole.out, 0xff);
  fill_bytes(whole.lse, 0xff);
  for (std::int64_t b = 0; b < p.batch; ++b) {
    const auto at = static_cast<std::size_t>(b);
    TensorLayout k = p.k;
    TensorLayout v = p.v;
    k.offset += p.kv_rows[at] * k.row_stride;
    v.offset += p.kv_rows[at] * v.row_stride;
    const SdpaProblem one = alone(p, b, k, v);
    if (one.seq_len == 0) continue;
    SdpaOperands operands = whole;
    operands.lse = device.empty({p.n_heads, one.seq_len}, DType::f32);
    sdpa(device, operands, one);
    for (std::int64_t h = 0; h < p.n_heads; ++h) {
      std::memcpy(whole.lse.host<float>() + h * p.q_total + p.q_rows[at],
                  operands.lse.host<float>() + h * one.seq_len,
                  static_cast<std::size_t>(one.seq_len) * sizeof(float));
    }
  }
  return whole;
}

void check_bits(const Device& device, const Packed& x) {
  fill_bytes(x.operands.out, 0xff);
  fill_bytes(x.operands.lse, 0xff);
  sdpa(device, x.operands, x.problem);
  const SdpaOperands wanted = attended_alone(device, x.problem, x.operands);
  REQUIRE(bytes_of(x.operands.out) == bytes_of(wanted.out));
  REQUIRE(bytes_of(x.operands.lse) == bytes_of(wanted.lse));
}

void check_everywhere(Packed x) {
  for (const std::string& isa : isas()) {
    for (const int threads : {1, 3}) {
      const Device device = device_of(isa, threads);
      for (const char* kernel : kKernels) {
        x.problem.kernel = kernel;
        INFO("isa ", isa, " threads ", threads, " kernel ", x.problem.kernel, " dtype ",
             name_of(x.problem.dtype));
        check_bits(device, x);
      }
    }
  }
}

/// Decode rows, chunks and whole prompts, with nothing on either side somewhere.
const std::vector<Sequence> kMixed{{1, 700}, {0, 40}, {130, 130}, {3, 1500}, {1, 1},
                                   {20, 90}, {5, 0},  {1, 513},   {60, 1100}};

}  // namespace

TEST_CASE("sequences of all kinds in one call") {
  std::mt19937 rng(1);
  const Device device("cpu");
  for (const DType dtype : kDTypes) {
    Packed x = packed(device, rng, dtype, kMixed, {4, 2, 64, 64});
    check_everywhere(x);
    x.problem.causal = true;
    check_everywhere(x);
  }
}

TEST_CASE("sequences that are cut differently, on many threads") {
  std::mt19937 rng(7);
  const Device one("cpu");
  const std::vector<std::vector<Sequence>> batches{
      // As many keys, other rows: the sequences of a part are no grid.
      {{1, 1100}, {3, 1100}, {2, 1100}},
      {{60, 1100}, {90, 1100}, {97, 1100}},
      // The first part leaves more states than the second.
      {{1, 3000}, {1, 3000}, {1, 3000}, {1, 3000}, {60, 1100}},
      {{60, 9000}, {1, 600}, {1, 600}},
      // Sets of rows of different numbers count the spans that they share.
      {{300, 300}, {60, 6000}, {40, 9000}},
      {{60, 9000}, {200, 3000}, {40, 8000}, {90, 4000}},
  };
  for (const std::vector<Sequence>& sequences : batches) {
    const Packed x = packed(one, rng, DType::f32, sequences, {2, 2, 64, 64});
    for (const int threads : {1, 4, 8}) {
      INFO("threads ", threads, " of ", sequences[0].rows, " rows first");
      check_bits(device_of(cpu::isa_name(cpu::best_isa()), threads), x);
    }
  }
}

TEST_CASE("head dims and groups of packed sequences") {
  std::mt19937 rng(2);
  const Device device("cpu");
  const std::vector<Sequence> sequences{{2, 37}, {70, 70}, {1, 300}, {9, 12}};
  for (const Heads heads : {Heads{1, 1, 8, 8}, Heads{6, 2, 40, 24}, Heads{8, 1, 128, 128}}) {
    for (const DType dtype : kDTypes) {
      Packed x = packed(device, rng, dtype, sequences, heads);
      x.problem.causal = true;
      check_everywhere(x);
    }
  }
}

TEST_CASE("what happens to scores of packed sequences") {
  std::mt19937 rng(3);
  const Device device("cpu");
  Packed x =
      packed(device, rng, DType::f32, {{1, 600}, {33, 80}, {4, 9}, {100, 100}}, {4, 2, 32, 32});
  SdpaProblem& p = x.problem;
  p.causal = true;
  p.window_left = 40;
  check_everywhere(x);
  p.softcap = 3;
  p.alibi_slopes = HeadLayout{DType::f32, 0, p.n_heads, 1};
  x.operands.alibi_slopes = device.empty({p.batch, p.n_heads}, DType::f32);
  fill_normal(x.operands.alibi_slopes, rng, 0.1f);
  p.sinks = HeadLayout{DType::f32, 0, 0, 1};
  x.operands.sinks = device.empty({p.n_heads}, DType::f32);
  fill_normal(x.operands.sinks, rng, 1);
  check_everywhere(x);
  p.window_left = Visibility::kUnlimited;
  p.mask = MaskLayout{DType::u8, 0, 0, p.q_total * p.kv_capacity, p.kv_capacity, 1};
  x.operands.mask = device.empty({p.n_heads, p.q_total, p.kv_capacity}, DType::u8);
  for (std::size_t i = 0; i < x.operands.mask.element_count(); ++i) {
    x.operands.mask.host<std::uint8_t>()[i] = rng() % 3 == 0 ? 0 : 1;
  }
  check_everywhere(x);
}

TEST_CASE("starts and positions of packed sequences") {
  std::mt19937 rng(4);
  const Device device("cpu");
  Packed x = packed(device, rng, DType::bf16, {{7, 90}, {1, 600}, {64, 70}}, {2, 2, 64, 64});
  x.problem.causal = true;
  x.problem.kv_starts = {3, 520, 70};
  check_everywhere(x);
  x.problem.q_starts = {10, 550, -20};
  check_everywhere(x);
}

TEST_CASE("rows of packed sequences are checked") {
  std::mt19937 rng(5);
  const Device device("cpu");
  const Packed x = packed(device, rng, DType::f32, {{2, 5}, {3, 4}}, {2, 1, 8, 8});
  const auto refusal = [&](const std::string& word, auto change) {
    Packed bad = x;
    change(bad.problem);
    CHECK(error_of([&] { sdpa(device, bad.operands, bad.problem); }, word) ==
          ErrorCode::invalid_argument);
  };
  refusal("q_rows: -1 of sequence 0", [](SdpaProblem& p) { p.q_rows[0] = -1; });
  refusal("q_rows", [](SdpaProblem& p) { p.q_rows[1] = p.q_rows[0] + 1; });
  refusal("q_rows", [](SdpaProblem& p) { p.q_rows[1] = p.q_total - 2; });
  refusal("q_rows: 1 entries", [](SdpaProblem& p) { p.q_rows.pop_back(); });
  refusal("kv_rows", [](SdpaProblem& p) { p.kv_rows[1] = p.kv_total - 3; });
  refusal("kv_rows: -2 of sequence 0", [](SdpaProblem& p) { p.kv_rows[0] = -2; });
  refusal("kv_rows: are given, and so are pages", [](SdpaProblem& p) { p.pages = PageTable{}; });
}

TEST_CASE("an update of recorded packed rows is checked") {
  std::mt19937 rng(6);
  const Device device("cpu");
  const Packed x = packed(device, rng, DType::f32, {{2, 50}, {3, 4}}, {2, 1, 8, 8});
  CommandEncoder encoder = device.command_encoder();
  encoder.begin_capture();
  encode_sdpa(encoder, KernelRegistry(device), device, x.operands, x.problem);
  Graph graph = encoder.end_capture();
  CHECK(error_of([&] { graph.update(0, 50); }, "kv_rows") == ErrorCode::invalid_argument);
  graph.update(0, 4);
  Visibility shorter = x.problem;
  shorter.kv_lengths = {50, 5};
  shorter.kv_lengths[1] += 3;
  CHECK(error_of([&] { graph.update(0, shorter); }, "kv_rows") == ErrorCode::invalid_argument);
}
