// Schedules made through the C interface: the bits of single calls, layer after layer and step
// after step, and what they refuse.
#include <array>
#include <string>

#include "c_problem.h"
#include "problems.h"
#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

struct GiveBackPrepared {
  void operator()(metal_sdpa_prepared* handle) const { metal_sdpa_prepared_release(handle); }
};
using PreparedHandle = std::unique_ptr<metal_sdpa_prepared, GiveBackPrepared>;

PreparedHandle prepare(const DeviceHandle& device, const metal_sdpa_problem& problem,
                       const metal_sdpa_buffer* table = nullptr) {
  metal_sdpa_prepared* prepared = nullptr;
  const metal_sdpa_status status = metal_sdpa_prepare(device.get(), &problem, table, &prepared);
  INFO(metal_sdpa_last_message());
  REQUIRE(status == METAL_SDPA_OK);
  return PreparedHandle(prepared);
}

std::vector<std::uint8_t> take_out(const SdpaOperands& operands) {
  std::vector<std::uint8_t> bytes = bytes_of(operands.out);
  fill_bytes(operands.out, 0xa5);
  return bytes;
}

std::vector<std::uint8_t> expected(const Device& device, const SdpaOperands& operands,
                                   const SdpaProblem& problem) {
  fill_bytes(operands.out, 0xa5);
  sdpa(device, operands, problem);
  return take_out(operands);
}

/// One new row of 4 heads over a cache of 600 slots, 550 in use.
SdpaProblem decode_problem() {
  SdpaProblem p;
  p.n_heads = 4;
  p.n_kv_heads = 2;
  p.kv_capacity = 600;
  p.kv_len = 550;
  p.head_dim = p.value_dim = 64;
  p.scale = 0.125f;
  p.set_packed_layouts();
  return p;
}

/// The same in 150 pages of 4 slots, each where its number says.
SdpaProblem paged_problem() {
  SdpaProblem p = decode_problem();
  PageTable& pages = p.pages.emplace();
  pages.page_len = 4;
  pages.n_pages = 150;
  pages.n_entries = 150;
  p.k = p.v = {0, 2 * 4 * 64, 4 * 64, 64};
  return p;
}

SdpaOperands memory_of(const Device& device, std::mt19937& rng) {
  SdpaOperands x;
  x.q = device.empty({256}, DType::f32);
  x.k = device.empty({76800}, DType::f32);
  x.v = device.empty({76800}, DType::f32);
  x.out = device.empty({256}, DType::f32);
  for (const Buffer* buffer : {&x.q, &x.k, &x.v}) fill_normal(*buffer, rng, 1);
  return x;
}

void check_bad(metal_sdpa_status status, const std::string& word) {
  const std::string text = metal_sdpa_last_message();
  INFO("the message is: ", text, "; the word is: ", word);
  CHECK(status == METAL_SDPA_INVALID_ARGUMENT);
  CHECK(text.find(word) != std::string::npos);
}

}  // namespace

TEST_CASE("one schedule serves every layer and every step") {
  std::mt19937 rng(71);
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    const DeviceHandle handle = open_device(kind.c_str());
    SdpaProblem problem = decode_problem();
    CProblem c(problem);
    const PreparedHandle prepared = prepare(handle, c.c);
    for (const std::int64_t length : {550, 551, 600, 3}) {
      problem.kv_len = c.c.kv_len = length;
      CHECK(metal_sdpa_prepared_update(prepared.get(), &c.c, nullptr) == METAL_SDPA_OK);
      for (int layer = 0; layer < 3; ++layer) {
        const SdpaOperands operands = memory_of(device, rng);
        const auto want = expected(device, operands, problem);
        const COperands memory(operands, problem);
        CHECK(metal_sdpa_prepared_run(prepared.get(), &memory.c, nullptr) == METAL_SDPA_OK);
        CHECK(take_out(operands) == want);
      }
    }
    problem.window_left = c.c.window_left = 17;
    problem.q_start = c.c.q_start = 1;
    CHECK(metal_sdpa_prepared_update(prepared.get(), &c.c, nullptr) == METAL_SDPA_OK);
    const SdpaOperands operands = memory_of(device, rng);
    const auto want = expected(device, operands, problem);
    const COperands memory(operands, problem);
    metal_sdpa_prepared_info info;
    REQUIRE(metal_sdpa_prepared_describe(prepared.get(), &info, sizeof info) == METAL_SDPA_OK);
    CHECK(info.scratch_bytes == prepared->prepared.scratch_bytes());
    const auto bytes = static_cast<std::int64_t>(info.scratch_bytes) + 64;
    const BufferHandle scratch = handle_of(device.empty({bytes}, DType::u8));
    CHECK(metal_sdpa_prepared_run(prepared.get(), &memory.c, scratch.get()) == METAL_SDPA_OK);
    CHECK(take_out(operands) == want);
    metal_sdpa_encoder* encoder = nullptr;
    REQUIRE(metal_sdpa_encoder_open(handle.get(), &encoder) == METAL_SDPA_OK);
    const EncoderHandle owner(encoder);
    CHECK(metal_sdpa_encode_prepared(encoder, prepared.get(), &memory.c, scratch.get()) ==
          METAL_SDPA_OK);
    CHECK(metal_sdpa_encoder_commit(encoder) == METAL_SDPA_OK);
    CHECK(metal_sdpa_encoder_wait(encoder) == METAL_SDPA_OK);
    CHECK(take_out(operands) == want);
  }
}

TEST_CASE("a prepared table is read by runs that give none, and another takes its place") {
  std::mt19937 rng(72);
  const Device device("cpu");
  const DeviceHandle handle = open_device("cpu");
  const SdpaProblem problem = paged_problem();
  const CProblem c(problem);
  std::array<Buffer, 2> tables;
  for (int t = 0; t < 2; ++t) {
    tables[t] = device.empty({150}, DType::i32);
    for (int i = 0; i < 150; ++i) tables[t].host<std::int32_t>()[i] = t == 0 ? i : 149 - i;
  }
  const std::array<BufferHandle, 2> handles{handle_of(tables[0]), handle_of(tables[1])};
  const PreparedHandle prepared = prepare(handle, c.c, handles[0].get());
  SdpaOperands operands = memory_of(device, rng);
  for (int t = 0; t < 2; ++t) {
    if (t == 1) {
      CHECK(metal_sdpa_prepared_update(prepared.get(), &c.c, handles[1].get()) == METAL_SDPA_OK);
    }
    operands.block_table = tables[t];
    const auto want = expected(device, operands, problem);
    COperands memory(operands, problem);
    memory.c.block_table = nullptr;
    CHECK(metal_sdpa_prepared_run(prepared.get(), &memory.c, nullptr) == METAL_SDPA_OK);
    CHECK(take_out(operands) == want);
    memory.c.block_table = handles[1 - t].get();
    CHECK(metal_sdpa_prepared_run(prepared.get(), &memory.c, nullptr) == METAL_SDPA_OK);
    CHECK(take_out(operands) != want);
  }
  tables[0].host<std::int32_t>()[7] = 150;
  check_bad(metal_sdpa_prepared_update(prepared.get(), &c.c, handles[0].get()), "page 150");
}

TEST_CASE("bad schedules, runs and updates are refused") {
  std::mt19937 rng(73);
  const Device device("cpu");
  const DeviceHandle handle = open_device("cpu");
  const SdpaProblem problem = decode_problem();
  CProblem c(problem);
  const PreparedHandle prepared = prepare(handle, c.c);
  const SdpaOperands operands = memory_of(device, rng);
  COperands memory(operands, problem);
  metal_sdpa_prepared* none = reinterpret_cast<metal_sdpa_prepared*>(&none);
  metal_sdpa_prepared_info info;
  check_bad(metal_sdpa_prepare(handle.get(), &c.c, nullptr, nullptr), "prepared: got NULL");
  check_bad(metal_sdpa_prepare(nullptr, &c.c, nullptr, &none), "device: got NULL");
  CHECK(none == nullptr);
  check_bad(metal_sdpa_prepare(handle.get(), nullptr, nullptr, &none), "problem: got NULL");
  check_bad(metal_sdpa_prepare(handle.get(), &c.c, memory.c.q, &none), "block_table: is given");
  check_bad(metal_sdpa_prepared_run(nullptr, &memory.c, nullptr), "prepared: got NULL");
  check_bad(metal_sdpa_prepared_run(prepared.get(), nullptr, nullptr), "operands: got NULL");
  check_bad(metal_sdpa_prepared_run(prepared.get(), &memory.c, memory.c.q), "scratch: ");
  check_bad(metal_sdpa_prepared_update(nullptr, &c.c, nullptr), "prepared: got NULL");
  check_bad(metal_sdpa_prepared_update(prepared.get(), nullptr, nullptr), "problem: got NULL");
  check_bad(metal_sdpa_prepared_update(prepared.get(), &c.c, memory.c.q), "block_table: is given");
  check_bad(metal_sdpa_prepared_describe(nullptr, &info, sizeof info), "prepared: got NULL");
  check_bad(metal_sdpa_prepared_describe(prepared.get(), nullptr, sizeof info), "info: got NULL");
  check_bad(metal_sdpa_encode_prepared(nullptr, prepared.get(), &memory.c, nullptr),
            "encoder: got NULL");
  metal_sdpa_encoder* encoder = nullptr;
  REQUIRE(metal_sdpa_encoder_open(handle.get(), &encoder) == METAL_SDPA_OK);
  const EncoderHandle owner(encoder);
  check_bad(metal_sdpa_encode_prepared(encoder, nullptr, &memory.c, nullptr), "prepared: got NULL");
  c.c.kv_len = 601;
  check_bad(metal_sdpa_prepared_update(prepared.get(), &c.c, nullptr), "kv_lengths: 601");
  c.c.kv_len = 550;
  c.c.seq_len = 2;
  check_bad(metal_sdpa_prepared_update(prepared.get(), &c.c, nullptr), "problem: its extents");
  c.c.seq_len = 1;
  c.c.n_heads = 0;
  check_bad(metal_sdpa_prepare(handle.get(), &c.c, nullptr, &none), "prepare: n_heads: 0");
  memory.c.mask = memory.c.q;
  check_bad(metal_sdpa_prepared_run(prepared.get(), &memory.c, nullptr), "mask: is given");
  metal_sdpa_prepared_release(nullptr);
}
