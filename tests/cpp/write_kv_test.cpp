// New rows in a cache: every slot, and nothing beside it.
#include "metal_sdpa/write_kv.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

struct Write {
  WriteKvProblem problem;
  WriteKvOperands operands;
  std::vector<std::int32_t> slots;
};

void fill_random(const Buffer& buffer, std::mt19937& rng) {
  auto* bytes = static_cast<std::uint8_t*>(buffer.data());
  for (std::size_t i = 0; i < buffer.byte_len(); ++i) bytes[i] = static_cast<std::uint8_t>(rng());
}

void set_slots(Write& write, const std::vector<std::int32_t>& slots) {
  write.slots = slots;
  std::memcpy(write.operands.slots.data(), slots.data(), slots.size() * sizeof(slots[0]));
}

/// K and V as views of one tensor whose rows hold both, heads before slots or behind; new rows in
/// an order of their own, with gaps.
Write make_write(const Device& device, DType dtype, bool heads_first, std::mt19937& rng) {
  Write write;
  WriteKvProblem& p = write.problem;
  p.dtype = dtype;
  p.tokens = 11;
  p.heads = 3;
  p.head_dim = 70;
  p.value_dim = 33;
  p.n_pages = 5;
  p.page_size = 7;
  const std::int64_t row = p.head_dim + p.value_dim + 2;
  p.k_cache = heads_first ? PageLayout{1, p.heads * p.page_size * row, row, p.page_size * row}
                          : PageLayout{1, p.heads * p.page_size * row, p.heads * row, row};
  p.v_cache = p.k_cache;
  p.v_cache.offset += p.head_dim + 1;
  p.k_new = {3, p.head_dim, p.tokens * p.head_dim};
  p.v_new = {0, p.heads * (p.value_dim + 1), p.value_dim + 1};
  WriteKvOperands& x = write.operands;
  x.k_cache = x.v_cache = device.empty({p.n_pages * p.page_size * p.heads * row + 4}, dtype);
  x.k_new = device.empty({3 + p.tokens * p.heads * p.head_dim}, dtype);
  x.v_new = device.empty({p.tokens * p.heads * (p.value_dim + 1)}, dtype);
  x.slots = device.empty({p.tokens}, DType::i32);
  for (const Buffer* buffer : {&x.k_cache, &x.k_new, &x.v_new}) fill_random(*buffer, rng);
  std::vector<std::int32_t> order(static_cast<std::size_t>(p.n_pages * p.page_size));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), rng);
  order.resize(static_cast<std::size_t>(p.tokens));
  order[4] = -1;
  order[10] = static_cast<std::int32_t>(p.n_pages * p.page_size - 1);
  if (std::count(order.begin(), order.end(), order[10]) > 1) order[10] = -1;
  set_slots(write, order);
  return write;
}

void copy_element(const Buffer& from, std::int64_t i, std::vector<std::uint8_t>& to,
                  std::int64_t j) {
  const std::size_t size = dtype_size(from.dtype());
  std::memcpy(to.data() + static_cast<std::size_t>(j) * size,
              static_cast<const std::uint8_t*>(from.data()) + static_cast<std::size_t>(i) * size,
              size);
}

/// The cache's bytes after the write, element by element.
std::vector<std::uint8_t> expected(const Write& write, std::vector<std::uint8_t> cache) {
  const WriteKvProblem& p = write.problem;
  const auto put = [&](const Buffer& new_rows, const TokenLayout& from, const PageLayout& to,
                       std::int64_t width) {
    for (std::int64_t t = 0; t < p.tokens; ++t) {
      const std::int64_t slot = write.slots[static_cast<std::size_t>(t)];
      if (slot < 0 || slot >= p.n_pages * p.page_size) continue;
      for (std::int64_t h = 0; h < p.heads; ++h) {
        for (std::int64_t d = 0; d < width; ++d) {
          copy_element(new_rows, from.offset + t * from.token_stride + h * from.head_stride + d,
                       cache,
                       to.offset + slot / p.page_size * to.page_stride +
                           slot % p.page_size * to.slot_stride + h * to.head_stride + d);
        }
      }
    }
  };
  put(write.operands.k_new, p.k_new, p.k_cache, p.head_dim);
  put(write.operands.v_new, p.v_new, p.v_cache, p.value_dim);
  return cache;
}

}  // namespace

TEST_CASE("rows go to their slots, and every other byte stays") {
  std::mt19937 rng(41);
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      for (const bool heads_first : {false, true}) {
        const Write write = make_write(device, dtype, heads_first, rng);
        const auto want = expected(write, bytes_of(write.operands.k_cache));
        write_kv(device, write.operands, write.problem);
        INFO(kind, " ", dtype_name(dtype), heads_first ? " HND" : " NHD");
        CHECK(bytes_of(write.operands.k_cache) == want);
      }
    }
  }
}

TEST_CASE("a replay reads the slots anew, and leaves out those that are none") {
  std::mt19937 rng(42);
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    const KernelRegistry registry(device);
    Write write = make_write(device, DType::f16, false, rng);
    CommandEncoder encoder(device);
    encoder.begin_capture();
    encode_write_kv(encoder, registry, device, write.operands, write.problem);
    const Graph graph = encoder.end_capture();
    set_slots(write, {34, 0, -1, 35, 7, -7, 20, 1 << 30, 2, 3, 6});
    const auto want = expected(write, bytes_of(write.operands.k_cache));
    graph.replay(encoder);
    encoder.commit_and_wait();
    CHECK(bytes_of(write.operands.k_cache) == want);
  }
}

TEST_CASE("bad writes are refused by name, and nothing is written") {
  const Device device("cpu");
  std::mt19937 rng(43);
  const auto refusal = [&](const std::string& word, const auto& change) {
    Write write = make_write(device, DType::f32, false, rng);
    const auto before = bytes_of(write.operands.k_cache);
    const Buffer cache = write.operands.k_cache;
    change(write);
    const ErrorCode code = error_of([&] { write_kv(device, write.operands, write.problem); }, word);
    CHECK(bytes_of(cache) == before);
    return code;
  };
  constexpr auto kBad = ErrorCode::invalid_argument;
  const auto with_slot = [](std::int32_t slot) {
    return [slot](Write& w) {
      w.slots[2] = slot;
      set_slots(w, w.slots);
    };
  };
  CHECK(refusal("slots: 35 of token 2, takes -1 to 34", with_slot(35)) == kBad);
  CHECK(refusal("slots: -2 of token 2", with_slot(-2)) == kBad);
  CHECK(refusal("is there twice", [](Write& w) {
          w.slots[2] = w.slots[3] = 9;
          set_slots(w, w.slots);
        }) == kBad);
  CHECK(refusal("page_size: 0", [](Write& w) { w.problem.page_size = 0; }) == kBad);
  CHECK(refusal("heads: 0", [](Write& w) { w.problem.heads = 0; }) == kBad);
  CHECK(refusal("n_pages: 1000000000", [](Write& w) { w.problem.n_pages = 1000000000; }) == kBad);
  CHECK(refusal("k_cache: elements", [](Write& w) { w.problem.n_pages = 6; }) == kBad);
  CHECK(refusal("k_new: elements", [](Write& w) { w.problem.k_new.offset = 4; }) == kBad);
  CHECK(refusal("v_cache: overlaps k_cache", [](Write& w) {
          --w.problem.v_cache.offset;
          --w.problem.v_cache.offset;
        }) == kBad);
  CHECK(refusal("k_cache: its strides make", [](Write& w) { w.problem.k_cache.slot_stride = 1; }) ==
        kBad);
  CHECK(refusal("k_cache: overlaps k_new",
                [](Write& w) { w.operands.k_new = w.operands.k_cache; }) == kBad);
  CHECK(refusal("slots: elements 0 to 10",
                [&](Write& w) { w.operands.slots = device.empty({10}, DType::i32); }) == kBad);
  CHECK(refusal("slots: dtype f32, takes i32", [&](Write& w) {
          w.operands.slots = device.empty({11}, DType::f32);
        }) == ErrorCode::unsupported_dtype);
  CHECK(refusal("dtype u8", [](Write& w) { w.problem.dtype = DType::u8; }) ==
        ErrorCode::unsupported_dtype);
  Write none = make_write(device, DType::f32, false, rng);
  none.problem.tokens = 0;
  write_kv(device, none.operands, none.problem);
}
