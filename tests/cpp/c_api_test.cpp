// Calls through the C interface give the bits of the C++ calls.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "batches.h"
#include "c_problem.h"
#include "problems.h"
#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

constexpr std::uint8_t kPattern = 0xa5;

struct Outputs {
  std::vector<std::uint8_t> out, lse;
  bool operator==(const Outputs&) const = default;
};

Outputs take_outputs(const SdpaOperands& operands) {
  Outputs outputs;
  for (const auto& [buffer, bytes] :
       {std::pair{operands.out, &outputs.out}, std::pair{operands.lse, &outputs.lse}}) {
    if (!buffer.valid()) continue;
    *bytes = bytes_of(buffer);
    fill_bytes(buffer, kPattern);
  }
  return outputs;
}

/// What the C++ call gives, on outputs of one pattern.
Outputs expected(const Device& device, const SdpaOperands& operands, const SdpaProblem& problem) {
  take_outputs(operands);
  sdpa(device, operands, problem);
  return take_outputs(operands);
}

Outputs through_c(const char* kind, const SdpaOperands& operands, const metal_sdpa_problem& c,
                  const SdpaProblem& problem) {
  const DeviceHandle device = open_device(kind);
  const COperands memory(operands, problem);
  take_outputs(operands);
  const metal_sdpa_status status = metal_sdpa_sdpa(device.get(), &c, &memory.c);
  INFO(metal_sdpa_last_message());
  REQUIRE(status == METAL_SDPA_OK);
  return take_outputs(operands);
}

std::vector<std::int64_t> ends_of(const std::vector<std::int64_t>& lengths) {
  std::vector<std::int64_t> ends{0};
  for (const std::int64_t rows : lengths) ends.push_back(ends.back() + rows);
  return ends;
}

/// Four sequences, q and out packed, tokens before heads.
SdpaProblem packed_problem(std::int64_t gap) {
  SdpaProblem p = batch_problem(DType::f16, {{3, 9}, {1, 70}, {0, 4}, {20, 33}}, {4, 2, 32, 48});
  p.causal = true;
  pack_queries(gap, p);
  pack_keys(gap, p);
  return p;
}

SdpaOperands packed_operands(const Device& device, const SdpaProblem& p, std::mt19937& rng) {
  SdpaOperands x;
  x.q = device.empty({p.q_total * p.n_heads * p.head_dim}, p.dtype);
  x.k = device.empty({p.kv_total * p.n_kv_heads * p.head_dim}, p.dtype);
  x.v = device.empty({p.kv_total * p.n_kv_heads * p.value_dim}, p.dtype);
  x.out = device.empty({p.q_total * p.n_heads * p.value_dim}, p.dtype);
  x.lse = device.empty({p.n_heads * p.q_total}, DType::f32);
  for (const Buffer* buffer : {&x.q, &x.k, &x.v}) fill_normal(*buffer, rng, 1);
  return x;
}

/// K and V in pages of 4 slots, dealt out backwards. `ragged`: one list of entries for all.
SdpaProblem paged_problem(bool ragged, DType table) {
  SdpaProblem p = batch_problem(DType::f32, {{2, 9}, {1, 17}, {5, 5}}, {4, 2, 16, 16});
  p.causal = true;
  pack_queries(0, p);
  PageTable& pages = p.pages.emplace();
  pages.dtype = table;
  pages.page_len = 4;
  pages.n_pages = 12;
  pages.offset = 1;
  p.k = {0, 2 * 4 * 16, 4 * 16, 16};
  p.v = p.k;
  if (ragged) {
    pages.starts = {0, 3, 8};
    pages.n_entries = 10;
    return p;
  }
  pages.n_entries = 5;
  pages.sequence_stride = 6;
  return p;
}

void set_entry(const Buffer& table, std::size_t i, std::int64_t page) {
  if (table.dtype() == DType::i64) table.host<std::int64_t>()[i] = page;
  if (table.dtype() == DType::i32) table.host<std::int32_t>()[i] = static_cast<std::int32_t>(page);
}

SdpaOperands paged_operands(const Device& device, const SdpaProblem& p, std::mt19937& rng) {
  SdpaOperands x;
  x.q = device.empty({p.q_total * p.n_heads * p.head_dim}, p.dtype);
  x.k = device.empty({p.pages->n_pages * p.k.batch_stride}, p.dtype);
  x.v = device.empty({p.pages->n_pages * p.v.batch_stride}, p.dtype);
  x.out = device.empty({p.q_total * p.n_heads * p.value_dim}, p.dtype);
  x.lse = device.empty({p.n_heads * p.q_total}, DType::f32);
  for (const Buffer* buffer : {&x.q, &x.k, &x.v}) fill_normal(*buffer, rng, 1);
  x.block_table = device.empty({20}, p.pages->dtype);
  for (std::size_t i = 0; i < 20; ++i) {
    set_entry(x.block_table, i, static_cast<std::int64_t>(11 - i % 12));
  }
  return x;
}

metal_sdpa_write_kv_problem small_write() {
  metal_sdpa_write_kv_problem write;
  REQUIRE(metal_sdpa_write_kv_problem_init(&write, sizeof write) == METAL_SDPA_OK);
  write.dtype = METAL_SDPA_BF16;
  write.tokens = 3;
  write.heads = 2;
  write.head_dim = 5;
  write.value_dim = 7;
  write.n_pages = 4;
  write.page_size = 2;
  REQUIRE(metal_sdpa_write_kv_problem_set_packed_layouts(&write) == METAL_SDPA_OK);
  return write;
}

}  // namespace

TEST_CASE("random problems with all features give the bits of the C++ call") {
  std::mt19937 rng(61);
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    for (int i = 0; i < 60; ++i) {
      SdpaProblem problem = random_problem(rng, limits_for(device));
      add_features(rng, random_features(rng, 2), problem);
      const SdpaOperands operands = random_operands(rng, device, problem);
      const CProblem c(problem);
      INFO(kind, " problem ", i);
      CHECK(
          (through_c(kind.c_str(), operands, c.c, problem) == expected(device, operands, problem)));
    }
  }
}

TEST_CASE("packed rows by cu_seqlens, and by first rows and lengths") {
  std::mt19937 rng(62);
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    for (const std::int64_t gap : {0, 2}) {
      const SdpaProblem problem = packed_problem(gap);
      const SdpaOperands operands = packed_operands(device, problem, rng);
      const Outputs want = expected(device, operands, problem);
      CProblem c(problem);
      CHECK((through_c(kind.c_str(), operands, c.c, problem) == want));
      c.c.seq_len = c.c.kv_capacity = METAL_SDPA_UNSET;
      CHECK((through_c(kind.c_str(), operands, c.c, problem) == want));
      if (gap != 0) continue;
      const auto q_ends = ends_of(problem.query_lengths);
      const auto k_ends = ends_of(problem.kv_lengths);
      c.c.cu_seqlens_q = q_ends.data();
      c.c.cu_seqlens_k = k_ends.data();
      c.c.q_rows = c.c.kv_rows = c.c.query_lengths = c.c.kv_lengths = nullptr;
      c.c.kv_len = METAL_SDPA_UNSET;
      CHECK((through_c(kind.c_str(), operands, c.c, problem) == want));
      c.c.q_total = c.c.kv_total = METAL_SDPA_UNSET;
      CHECK((through_c(kind.c_str(), operands, c.c, problem) == want));
    }
  }
}

TEST_CASE("packed rows of which only some are in use") {
  std::mt19937 rng(63);
  const Device device("cpu");
  SdpaProblem problem = packed_problem(0);
  const auto q_ends = ends_of(problem.query_lengths);
  const auto k_ends = ends_of(problem.kv_lengths);
  const SdpaOperands operands = packed_operands(device, problem, rng);
  problem.query_lengths = {2, 1, 0, 17};
  problem.kv_lengths = {9, 40, 0, 30};
  const Outputs want = expected(device, operands, problem);
  CProblem c(problem);
  c.c.q_rows = c.c.kv_rows = nullptr;
  c.c.cu_seqlens_q = q_ends.data();
  c.c.cu_seqlens_k = k_ends.data();
  CHECK((through_c("cpu", operands, c.c, problem) == want));
  problem.query_lengths.assign(4, 0);
  problem.kv_lengths.assign(4, 3);
  problem.query_len.reset();
  const Outputs none = expected(device, operands, problem);
  c.c.query_lengths = c.c.kv_lengths = nullptr;
  c.c.query_len = 0;
  c.c.kv_len = 3;
  CHECK((through_c("cpu", operands, c.c, problem) == none));
}

TEST_CASE("keys in pages, by a table and by a list of entries") {
  std::mt19937 rng(64);
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    for (const bool ragged : {false, true}) {
      for (const DType table : {DType::i32, DType::i64}) {
        const SdpaProblem problem = paged_problem(ragged, table);
        const SdpaOperands operands = paged_operands(device, problem, rng);
        const Outputs want = expected(device, operands, problem);
        CProblem c(problem);
        INFO(kind, ragged ? " ragged " : " table ", dtype_name(table));
        CHECK((through_c(kind.c_str(), operands, c.c, problem) == want));
        c.c.kv_capacity = c.c.kv_len = METAL_SDPA_UNSET;
        CHECK((through_c(kind.c_str(), operands, c.c, problem) == want));
      }
    }
  }
}

TEST_CASE("layouts set through C are those of C++") {
  SdpaProblem problem;
  problem.batch = 2;
  problem.n_heads = 6;
  problem.n_kv_heads = 3;
  problem.seq_len = 5;
  problem.kv_capacity = 11;
  problem.head_dim = 7;
  problem.value_dim = 13;
  const auto same = [&](SdpaProblem cpp) {
    CProblem c(cpp);
    cpp.set_packed_layouts();
    REQUIRE(metal_sdpa_problem_set_packed_layouts(&c.c) == METAL_SDPA_OK);
    for (const auto& [layout, wanted] : {std::pair{c.c.q, cpp.q}, std::pair{c.c.k, cpp.k},
                                         std::pair{c.c.v, cpp.v}, std::pair{c.c.out, cpp.out}}) {
      CHECK(layout.offset == wanted.offset);
      CHECK(layout.batch_stride == wanted.batch_stride);
      CHECK(layout.head_stride == wanted.head_stride);
      CHECK(layout.row_stride == wanted.row_stride);
    }
  };
  same(problem);
  same(packed_problem(2));
  same(paged_problem(true, DType::i32));
}

TEST_CASE("writes into caches and merges give the bits of the C++ calls") {
  std::mt19937 rng(65);
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    const DeviceHandle handle = open_device(kind.c_str());
    WriteKvProblem p;
    p.dtype = DType::bf16;
    p.tokens = 3;
    p.heads = 2;
    p.head_dim = 5;
    p.value_dim = 7;
    p.n_pages = 4;
    p.page_size = 2;
    p.set_packed_layouts();
    WriteKvOperands x{device.empty({30}, p.dtype), device.empty({42}, p.dtype),
                      device.empty({80}, p.dtype), device.empty({112}, p.dtype),
                      device.empty({3}, DType::i32)};
    for (const Buffer* rows : {&x.k_new, &x.v_new}) fill_normal(*rows, rng, 1);
    const std::int32_t slots[] = {6, -1, 1};
    std::memcpy(x.slots.data(), slots, sizeof slots);
    write_kv(device, x, p);
    const auto k_want = bytes_of(x.k_cache);
    const auto v_want = bytes_of(x.v_cache);
    CHECK(std::count(k_want.begin(), k_want.end(), 0) < 160);
    for (const Buffer* cache : {&x.k_cache, &x.v_cache}) fill_bytes(*cache, 0);
    const BufferHandle k_new = handle_of(x.k_new), v_new = handle_of(x.v_new);
    const BufferHandle k_cache = handle_of(x.k_cache), v_cache = handle_of(x.v_cache);
    const BufferHandle slot_handle = handle_of(x.slots);
    const metal_sdpa_write_kv_problem write = small_write();
    const metal_sdpa_write_kv_operands memory{sizeof memory, k_new.get(),   v_new.get(),
                                              k_cache.get(), v_cache.get(), slot_handle.get()};
    CHECK(metal_sdpa_write_kv(handle.get(), &write, &memory) == METAL_SDPA_OK);
    CHECK(bytes_of(x.k_cache) == k_want);
    CHECK(bytes_of(x.v_cache) == v_want);
  }
}

TEST_CASE("merges give the bits of the C++ call") {
  std::mt19937 rng(66);
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    const DeviceHandle handle = open_device(kind.c_str());
    MergeProblem p;
    p.dtype = DType::f16;
    p.out_dtype = DType::bf16;
    p.n_states = 3;
    p.batch = 2;
    p.heads = 2;
    p.rows = 3;
    p.width = 9;
    p.set_packed_layouts();
    const MergeOperands x{device.empty({324}, p.dtype), device.empty({36}, DType::f32),
                          device.empty({108}, p.out_dtype), device.empty({12}, DType::f32)};
    fill_normal(x.outs, rng, 1);
    fill_normal(x.lses, rng, 2);
    merge_states(device, x, p);
    const auto out = bytes_of(x.out), lse = bytes_of(x.lse);
    for (const Buffer* buffer : {&x.out, &x.lse}) fill_bytes(*buffer, kPattern);
    metal_sdpa_merge_problem merge;
    REQUIRE(metal_sdpa_merge_problem_init(&merge, sizeof merge) == METAL_SDPA_OK);
    CHECK(merge.batch == 1);
    merge.dtype = METAL_SDPA_F16;
    merge.out_dtype = METAL_SDPA_BF16;
    merge.n_states = 3;
    merge.batch = 2;
    merge.heads = 2;
    merge.rows = 3;
    merge.width = 9;
    REQUIRE(metal_sdpa_merge_problem_set_packed_layouts(&merge) == METAL_SDPA_OK);
    const BufferHandle outs = handle_of(x.outs), lses = handle_of(x.lses);
    const BufferHandle out_handle = handle_of(x.out), lse_handle = handle_of(x.lse);
    const metal_sdpa_merge_operands memory{sizeof memory, outs.get(), lses.get(), out_handle.get(),
                                           lse_handle.get()};
    CHECK(metal_sdpa_merge_states(handle.get(), &merge, &memory) == METAL_SDPA_OK);
    CHECK(bytes_of(x.out) == out);
    CHECK(bytes_of(x.lse) == lse);
    for (const Buffer* buffer : {&x.out, &x.lse}) fill_bytes(*buffer, kPattern);
    metal_sdpa_encoder* encoder = nullptr;
    REQUIRE(metal_sdpa_encoder_open(handle.get(), &encoder) == METAL_SDPA_OK);
    const EncoderHandle owner(encoder);
    CHECK(metal_sdpa_encode_merge_states(encoder, &merge, &memory) == METAL_SDPA_OK);
    CHECK(metal_sdpa_encoder_commit(encoder) == METAL_SDPA_OK);
    CHECK(metal_sdpa_encoder_wait(encoder) == METAL_SDPA_OK);
    CHECK(bytes_of(x.out) == out);
  }
}

TEST_CASE("an encoder writes new rows and attends over them in one go") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    const DeviceHandle handle = open_device(kind.c_str());
    SdpaProblem problem;
    problem.n_heads = problem.n_kv_heads = 1;
    problem.kv_capacity = problem.kv_len = 2;
    problem.head_dim = problem.value_dim = 4;
    problem.set_packed_layouts();
    SdpaOperands x;
    x.q = device.empty({4}, DType::f32);
    x.k = device.empty({8}, DType::f32);
    x.v = device.empty({8}, DType::f32);
    x.out = device.empty({4}, DType::f32);
    const Buffer rows = device.empty({8}, DType::f32);
    const Buffer slots = device.empty({2}, DType::i32);
    for (int i = 0; i < 8; ++i) rows.host<float>()[i] = static_cast<float>(i);
    slots.host<std::int32_t>()[0] = 1;
    metal_sdpa_write_kv_problem write = small_write();
    write.dtype = METAL_SDPA_F32;
    write.tokens = 2;
    write.heads = 1;
    write.head_dim = write.value_dim = 4;
    write.n_pages = 1;
    REQUIRE(metal_sdpa_write_kv_problem_set_packed_layouts(&write) == METAL_SDPA_OK);
    const CProblem c(problem);
    EncoderHandle encoder;
    {
      const COperands memory(x, problem);
      const BufferHandle new_rows = handle_of(rows), slot_handle = handle_of(slots);
      const BufferHandle k = handle_of(x.k), v = handle_of(x.v);
      const metal_sdpa_write_kv_operands writes{sizeof writes, new_rows.get(), new_rows.get(),
                                                k.get(),       v.get(),        slot_handle.get()};
      metal_sdpa_encoder* made = nullptr;
      REQUIRE(metal_sdpa_encoder_open(handle.get(), &made) == METAL_SDPA_OK);
      encoder.reset(made);
      CHECK(metal_sdpa_encode_write_kv(made, &write, &writes) == METAL_SDPA_OK);
      CHECK(metal_sdpa_encode_sdpa(made, &c.c, &memory.c) == METAL_SDPA_OK);
    }
    // Every handle of what was recorded is gone.
    CHECK(metal_sdpa_encoder_commit(encoder.get()) == METAL_SDPA_OK);
    CHECK(metal_sdpa_encoder_wait(encoder.get()) == METAL_SDPA_OK);
    CHECK(x.v.host<float>()[0] == 4);
    for (int i = 0; i < 4; ++i) CHECK(x.out.host<float>()[i] == static_cast<float>(2 + i));
    CHECK(metal_sdpa_encoder_commit(encoder.get()) == METAL_SDPA_INVALID_ARGUMENT);
  }
}

TEST_CASE("a closed device's buffers stay, and a batch of none is fine") {
  DeviceHandle device = open_device("cpu");
  metal_sdpa_buffer* buffer = nullptr;
  REQUIRE(metal_sdpa_buffer_allocate(device.get(), METAL_SDPA_F32, 4, &buffer) == METAL_SDPA_OK);
  const BufferHandle owner(buffer);
  device.reset();
  metal_sdpa_buffer_info info;
  REQUIRE(metal_sdpa_buffer_describe(buffer, &info, sizeof info) == METAL_SDPA_OK);
  std::memset(info.data, 1, info.byte_len);
  device = open_device("cpu");
  SdpaProblem problem;
  problem.batch = 0;
  CProblem c(problem);
  const std::int64_t none[] = {0};
  c.c.cu_seqlens_q = c.c.cu_seqlens_k = none;
  c.c.seq_len = c.c.kv_capacity = c.c.kv_len = METAL_SDPA_UNSET;
  const COperands memory({}, problem);
  CHECK(metal_sdpa_sdpa(device.get(), &c.c, &memory.c) == METAL_SDPA_OK);
}
