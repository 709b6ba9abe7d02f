// A prepared problem gives the bits of sdpa() on the memory of every layer, and refuses what sdpa()
// would refuse.
#include "metal_sdpa/prepared.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <thread>

#include "problems.h"
#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

SdpaOperands with_new_outputs(const Device& device, const SdpaProblem& problem,
                              const SdpaOperands& operands) {
  SdpaOperands other = operands;
  const SdpaOperands blank = poisoned_operands(device, problem);
  other.out = blank.out;
  other.lse = blank.lse;
  return other;
}

/// The outputs of plain sdpa(), then of `attend`, on the same memory.
template <typename Attend>
void check_same_bits(const Device& device, const SdpaProblem& problem, const SdpaOperands& operands,
                     const Attend& attend) {
  const auto bytes = [](const SdpaOperands& x) {
    std::vector<std::uint8_t> all = bytes_of(x.out);
    if (!x.lse.valid()) return all;
    const std::vector<std::uint8_t> lse = bytes_of(x.lse);
    all.insert(all.end(), lse.begin(), lse.end());
    return all;
  };
  const SdpaOperands plain = with_new_outputs(device, problem, operands);
  const SdpaOperands prepared = with_new_outputs(device, problem, operands);
  sdpa(device, plain, problem);
  attend(prepared);
  REQUIRE(bytes(prepared) == bytes(plain));
}

SdpaProblem decode_problem(std::int64_t keys) {
  SdpaProblem p;
  p.n_heads = 4;
  p.n_kv_heads = 2;
  p.kv_capacity = p.kv_len = keys;
  p.head_dim = p.value_dim = 16;
  p.scale = 0.25f;
  p.set_packed_layouts();
  return p;
}

/// Two sequences on five pages of four slots.
SdpaProblem paged_problem() {
  SdpaProblem p = decode_problem(12);
  p.batch = 2;
  p.kv_lengths = {9, 3};
  p.pages.emplace();
  p.pages->page_len = 4;
  p.pages->n_pages = 5;
  p.pages->n_entries = 3;
  p.pages->sequence_stride = 3;
  p.set_packed_layouts();
  return p;
}

SdpaOperands paged_operands(const Device& device, std::mt19937& rng) {
  SdpaOperands x;
  x.q = device.empty({2, 4, 1, 16}, DType::f32);
  x.k = device.empty({5, 2, 4, 16}, DType::f32);
  x.v = device.empty({5, 2, 4, 16}, DType::f32);
  x.out = device.empty({2, 4, 1, 16}, DType::f32);
  for (const Buffer& buffer : {x.q, x.k, x.v}) fill_normal(buffer, rng, 1);
  return x;
}

Buffer table_of(const Device& device, const std::vector<std::int32_t>& entries) {
  const Buffer table = device.empty({static_cast<std::int64_t>(entries.size())}, DType::i32);
  std::copy(entries.begin(), entries.end(), table.host<std::int32_t>());
  return table;
}

}  // namespace

TEST_CASE("random problems on the memory of several layers, run and encoded, with any scratch") {
  std::mt19937 rng(1);
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    const KernelRegistry registry(device);
    const int count = kind == "cpu" ? 120 : 12;
    for (int i = 0; i < count; ++i) {
      SdpaProblem problem = random_problem(rng, limits_for(device));
      add_features(rng, random_features(rng, 4), problem);
      problem.return_lse = i % 2 == 0;
      const PreparedSdpa prepared(device, problem);
      INFO(kind, " problem ", i);
      for (int layer = 0; layer < 2; ++layer) {
        const SdpaOperands operands = random_operands(rng, device, problem);
        check_same_bits(device, problem, operands, [&](const SdpaOperands& x) { prepared.run(x); });
        check_same_bits(device, problem, operands, [&](const SdpaOperands& x) {
          CommandEncoder encoder(device);
          prepared.encode(encoder, registry, x);
          encoder.commit_and_wait();
        });
      }
    }
  }
}

TEST_CASE("scratch of the caller's: enough is taken, at any address; less is refused") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    std::mt19937 rng(2);
    const SdpaProblem problem = decode_problem(kind == "cpu" ? 40000 : 700);
    const PreparedSdpa prepared(device, problem);
    const SdpaOperands operands = random_operands(rng, device, problem);
    const std::uint64_t bytes = prepared.scratch_bytes();
    REQUIRE(bytes > 0);
    for (const std::size_t offset : {0, 4, 128, 132}) {
      const auto size = static_cast<std::int64_t>(bytes + offset + 256);
      const Buffer memory = device.empty({size / 4 + 1}, DType::f32);
      for (std::size_t i = 0; i < memory.element_count(); ++i) set_element(memory, i, NAN);
      const Buffer scratch = memory.slice_view(offset, (bytes + 3) / 4);
      INFO(kind, " offset ", offset);
      check_same_bits(device, problem, operands,
                      [&](const SdpaOperands& x) { prepared.run(x, scratch); });
      const std::vector<std::uint8_t> after = bytes_of(memory);
      const std::size_t end = offset + (bytes + 3) / 4 * 4;
      const Buffer fresh =
          device.empty({static_cast<std::int64_t>(memory.element_count())}, DType::f32);
      for (std::size_t i = 0; i < fresh.element_count(); ++i) set_element(fresh, i, NAN);
      const std::vector<std::uint8_t> before = bytes_of(fresh);
      CHECK(std::equal(after.begin(), after.begin() + static_cast<std::ptrdiff_t>(offset),
                       before.begin()));
      CHECK(std::equal(after.begin() + static_cast<std::ptrdiff_t>(end), after.end(),
                       before.begin() + static_cast<std::ptrdiff_t>(end)));
    }
    const Buffer small = device.empty({1}, DType::u8);
    CHECK(error_of([&] { prepared.run(operands, small); }, "run: scratch: 1 bytes, takes ") ==
          ErrorCode::invalid_argument);
    CHECK(error_of([&] { prepared.run(operands, operands.k); }, "scratch: ") ==
          ErrorCode::invalid_argument);
  }
}

TEST_CASE("scratch may not be one of the operands") {
  const Device device("cpu");
  std::mt19937 rng(3);
  const SdpaProblem problem = decode_problem(40000);
  const PreparedSdpa prepared(device, problem);
  const SdpaOperands operands = random_operands(rng, device, problem);
  REQUIRE(operands.k.byte_len() >= prepared.scratch_bytes());
  CHECK(error_of([&] { prepared.run(operands, operands.k); }, "run: scratch: overlaps k") ==
        ErrorCode::invalid_argument);
  const Device other_memory("cpu");
  CHECK(other_memory == device);
}

TEST_CASE("update moves through all lengths of the capacity, run and captured") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    const KernelRegistry registry(device);
    std::mt19937 rng(4);
    const std::int64_t longest = kind == "cpu" ? 9000 : 300;
    SdpaProblem problem = decode_problem(longest);
    problem.kv_len = 1;
    const SdpaOperands operands = random_operands(rng, device, [&] {
      SdpaProblem full = problem;
      full.kv_len = longest;
      return full;
    }());
    PreparedSdpa prepared(device, problem);
    const std::uint64_t bytes = prepared.scratch_bytes();
    const Buffer scratch =
        device.empty({static_cast<std::int64_t>(std::max<std::uint64_t>(bytes, 1))}, DType::u8);
    for (const std::int64_t length : {std::int64_t{1}, std::int64_t{2}, longest / 2, longest}) {
      Visibility visibility = problem;
      visibility.kv_len = length;
      prepared.update(visibility);
      REQUIRE(prepared.problem().kv_len == length);
      CHECK(prepared.scratch_bytes() <= bytes);
      SdpaProblem now = problem;
      now.kv_len = length;
      INFO(kind, " length ", length);
      check_same_bits(device, now, operands,
                      [&](const SdpaOperands& x) { prepared.run(x, scratch); });
      check_same_bits(device, now, operands, [&](const SdpaOperands& x) {
        CommandEncoder recorder(device);
        recorder.begin_capture();
        prepared.encode(recorder, registry, x);
        const Graph graph = recorder.end_capture();
        CommandEncoder encoder(device);
        graph.replay(encoder);
        encoder.commit_and_wait();
      });
    }
    Visibility beyond = problem;
    beyond.kv_len = longest + 1;
    CHECK(error_of([&] { prepared.update(beyond); }, "update: kv_lengths") ==
          ErrorCode::invalid_argument);
    CHECK(prepared.problem().kv_len == longest);
  }
}

TEST_CASE("a captured node goes its own way from there") {
  const Device device("cpu");
  const KernelRegistry registry(device);
  std::mt19937 rng(5);
  const SdpaProblem problem = decode_problem(9000);
  SdpaOperands operands = random_operands(rng, device, problem);
  PreparedSdpa prepared(device, problem);
  CommandEncoder recorder(device);
  recorder.begin_capture();
  prepared.encode(recorder, registry, operands);
  Graph graph = recorder.end_capture();
  Visibility shorter = problem;
  shorter.kv_len = 5;
  prepared.update(shorter);
  graph.update(0, 8000);
  SdpaProblem now = problem;
  now.kv_len = 8000;
  const SdpaOperands plain = with_new_outputs(device, problem, operands);
  sdpa(device, plain, now);
  CommandEncoder encoder(device);
  graph.replay(encoder);
  encoder.commit_and_wait();
  CHECK(bytes_of(operands.out) == bytes_of(plain.out));
}

TEST_CASE("a page table is checked when it is prepared and when it is updated, and read anew") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    std::mt19937 rng(6);
    const SdpaProblem problem = paged_problem();
    const SdpaOperands operands = paged_operands(device, rng);
    const Buffer table = table_of(device, {4, 0, 2, 1, -1, -1});
    PreparedSdpa prepared(device, problem, table);
    const auto plain_with = [&](const SdpaProblem& now, const Buffer& named) {
      SdpaOperands all = operands;
      all.block_table = named;
      all.out = device.empty({2, 4, 1, 16}, DType::f32);
      sdpa(device, all, now);
      return bytes_of(all.out);
    };
    prepared.run(operands);
    CHECK(bytes_of(operands.out) == plain_with(problem, table));

    // An entry of a sequence that grows: the engine writes it, update() looks at it.
    Visibility next = problem;
    next.kv_lengths = {9, 5};
    CHECK(error_of([&] { prepared.update(next); },
                   "update: block_table: page -1 of sequence 1, entry 1, takes 0 to 4") ==
          ErrorCode::invalid_argument);
    prepared.run(operands);
    CHECK(bytes_of(operands.out) == plain_with(problem, table));
    table.host<std::int32_t>()[4] = 3;
    prepared.update(next);
    SdpaProblem grown = problem;
    static_cast<Visibility&>(grown) = next;
    prepared.run(operands);
    CHECK(bytes_of(operands.out) == plain_with(grown, table));

    // Another table, and one that only this run uses.
    const Buffer second = table_of(device, {0, 1, 2, 3, 4, -1});
    prepared.update(next, second);
    prepared.run(operands);
    CHECK(bytes_of(operands.out) == plain_with(grown, second));
    SdpaOperands own = operands;
    own.block_table = table;
    prepared.run(own);
    CHECK(bytes_of(own.out) == plain_with(grown, table));
    own.block_table = table_of(device, {5, 0, 2, 1, 3, -1});
    CHECK(error_of([&] { prepared.run(own); }, "run: block_table: page 5 of sequence 0, entry 0") ==
          ErrorCode::invalid_argument);
    CHECK(error_of([&] { PreparedSdpa(device, problem, own.block_table); },
                   "prepare: block_table: page 5") == ErrorCode::invalid_argument);
    CHECK(error_of([&] { PreparedSdpa(device, problem, device.empty({6}, DType::f32)); },
                   "prepare: block_table: dtype f32") == ErrorCode::unsupported_dtype);
    CHECK(error_of([&] { PreparedSdpa(device, decode_problem(4), table); },
                   "block_table: is given, but the problem has no pages") ==
          ErrorCode::invalid_argument);
    CHECK(error_of([&] { PreparedSdpa(device, problem).run(operands); },
                   "run: block_table: the buffer is empty") == ErrorCode::invalid_argument);
  }
}

TEST_CASE("of two updates at once neither loses the other's table") {
  const Device device("cpu");
  std::mt19937 rng(9);
  const SdpaProblem problem = paged_problem();
  const SdpaOperands operands = paged_operands(device, rng);
  const std::array<Buffer, 2> tables{table_of(device, {4, 0, 2, 1, 3, 0}),
                                     table_of(device, {0, 1, 2, 3, 4, 1})};
  std::array<std::vector<std::uint8_t>, 2> wanted;
  for (std::size_t t = 0; t < 2; ++t) {
    SdpaOperands all = operands;
    all.block_table = tables[t];
    sdpa(device, all, problem);
    wanted[t] = bytes_of(all.out);
  }
  REQUIRE(wanted[0] != wanted[1]);
  PreparedSdpa prepared(device, problem, tables[0]);
  std::atomic<bool> done{false};
  std::thread other([&] {
    while (!done) prepared.update(problem);
  });
  int lost = 0;
  for (int i = 0; i < 400; ++i) {
    const std::size_t t = static_cast<std::size_t>(i + 1) % 2;
    prepared.update(problem, tables[t]);
    std::this_thread::yield();
    prepared.run(operands);
    if (bytes_of(operands.out) != wanted[t]) ++lost;
  }
  done = true;
  other.join();
  CHECK(lost == 0);
}

TEST_CASE("memory that does not fit is refused as sdpa() refuses it") {
  const Device device("cpu");
  const KernelRegistry registry(device);
  std::mt19937 rng(7);
  const SdpaProblem problem = decode_problem(50);
  const PreparedSdpa prepared(device, problem);
  SdpaOperands operands = random_operands(rng, device, problem);
  operands.k = operands.k.slice_view(0, operands.k.element_count() - 1);
  CHECK(error_of([&] { prepared.run(operands); }, "run: k: elements 0 to ") ==
        ErrorCode::invalid_argument);
  CommandEncoder encoder(device);
  CHECK(error_of([&] { prepared.encode(encoder, registry, operands); }, "encode: k: elements") ==
        ErrorCode::invalid_argument);
  operands = random_operands(rng, device, problem);
  operands.out = operands.q;
  CHECK(error_of([&] { prepared.run(operands); }, "run: output: overlaps q") ==
        ErrorCode::invalid_argument);
  SdpaProblem wrong = problem;
  wrong.kv_len = 51;
  CHECK(error_of([&] { PreparedSdpa(device, wrong); }, "prepare: kv_lengths: 51") ==
        ErrorCode::invalid_argument);
}

TEST_CASE("runs on several threads while another one updates") {
  const Device device("cpu");
  std::mt19937 rng(8);
  const SdpaProblem problem = decode_problem(3000);
  const SdpaOperands operands = random_operands(rng, device, problem);
  PreparedSdpa prepared(device, problem);
  std::vector<std::vector<std::uint8_t>> wanted;
  for (const std::int64_t length : {3000, 20}) {
    SdpaProblem now = problem;
    now.kv_len = length;
    const SdpaOperands x = with_new_outputs(device, problem, operands);
    sdpa(device, x, now);
    wanted.push_back(bytes_of(x.out));
  }
  std::atomic<int> strangers{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&] {
      const SdpaOperands x = with_new_outputs(device, problem, operands);
      for (int i = 0; i < 200; ++i) {
        prepared.run(x);
        const std::vector<std::uint8_t> got = bytes_of(x.out);
        if (got != wanted[0] && got != wanted[1]) ++strangers;
      }
    });
  }
  for (int i = 0; i < 200; ++i) {
    Visibility visibility = problem;
    visibility.kv_len = i % 2 == 0 ? 20 : 3000;
    prepared.update(visibility);
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(strangers == 0);
}
