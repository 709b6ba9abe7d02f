// Work in flight: calls behind committed encoders, memory that is shared between submissions, and
// owners that are let go meanwhile.
#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "metal_problems.h"
#include "support.h"

namespace metal_sdpa::test {
namespace {

constexpr int kRounds = 12;

SdpaProblem square(std::int64_t seq_len, std::int64_t width) {
  SdpaProblem problem =
      problem_of({1, 2, 2, seq_len, seq_len, seq_len, width, width, true}, DType::f32);
  problem.return_lse = false;
  return problem;
}

Buffer filled(const Device& device, std::mt19937& rng, const Buffer& like) {
  const Buffer buffer = device.alloc_buffer(like.byte_len(), like.dtype(), like.shape());
  fill_normal(buffer, rng, 1);
  return buffer;
}

void encode(const Device& device, CommandEncoder& encoder, const SdpaOperands& x,
            const SdpaProblem& problem) {
  encode_sdpa(encoder, default_registry(device), device, x, problem);
}

std::int64_t length_for(const Device& device) {
  return device.kind() == DeviceKind::cpu ? 512 : 24;
}

/// Pages that are given back when the last owner lets go, which is counted.
struct CountedPages {
  explicit CountedPages(std::atomic<int>& freed) : freed_(freed) {
    if (posix_memalign(&data, 65536, kBytes) != 0) data = nullptr;
    REQUIRE(data != nullptr);
  }
  ~CountedPages() {
    // Whoever still reads or writes here gives a wrong result.
    for (std::size_t i = 0; i < kBytes; ++i) static_cast<unsigned char*>(data)[i] = 0xff;
    std::free(data);
    ++freed_;
  }
  static constexpr std::size_t kBytes = 1 << 18;
  void* data = nullptr;

 private:
  std::atomic<int>& freed_;
};

Buffer wrapped(const Device& device, std::atomic<int>& freed, const Shape& shape) {
  const auto pages = std::make_shared<CountedPages>(freed);
  const Buffer all = device.wrap({pages->data, CountedPages::kBytes, false, pages}, DType::f32,
                                 {CountedPages::kBytes / 4});
  std::size_t count = 1;
  for (const std::int64_t extent : shape) count *= static_cast<std::size_t>(extent);
  return all.slice_view(0, count).reshape(shape);
}

}  // namespace

TEST_CASE("a call behind committed work reads what that work writes") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    std::mt19937 rng(71);
    const SdpaProblem problem = square(length_for(device), 32);
    const SdpaOperands first = random_operands(rng, device, problem);
    SdpaOperands second = first;
    second.q = first.out;  // the call's queries are the encoder's output
    second.out = filled(device, rng, first.out);
    sdpa(device, first, problem);
    sdpa(device, second, problem);
    const auto expected = bytes_of(second.out);
    for (int round = 0; round < kRounds; ++round) {
      fill_bytes(first.out, 0xff);
      fill_bytes(second.out, 0xff);
      CommandEncoder encoder(device);
      for (int i = 0; i < 3; ++i) encode(device, encoder, first, problem);
      encoder.commit();
      sdpa(device, second, problem);
      INFO(kind, " round ", round);
      CHECK(bytes_of(second.out) == expected);
      encoder.wait_until_completed();
    }
  }
}

TEST_CASE("a call leaves alone what committed work still reads") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    std::mt19937 rng(72);
    const SdpaProblem problem = square(length_for(device), 32);
    const SdpaOperands reader = random_operands(rng, device, problem);
    SdpaOperands writer = random_operands(rng, device, problem);
    sdpa(device, reader, problem);
    const auto expected = bytes_of(reader.out);
    const auto keys = bytes_of(reader.k);
    writer.out = reader.k;
    for (int round = 0; round < kRounds; ++round) {
      std::memcpy(reader.k.data(), keys.data(), keys.size());
      fill_bytes(reader.out, 0xff);
      CommandEncoder encoder(device);
      for (int i = 0; i < 3; ++i) encode(device, encoder, reader, problem);
      encoder.commit();
      sdpa(device, writer, problem);  // overwrites the keys
      encoder.wait_until_completed();
      INFO(kind, " round ", round);
      CHECK(bytes_of(reader.out) == expected);
    }
  }
}

TEST_CASE("submissions in flight have scratch and tables of their own") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    std::mt19937 rng(73);
    const bool is_cpu = device.kind() == DeviceKind::cpu;
    // Several spans, whose states are scratch, and lengths of their own, which are a table.
    const std::int64_t longest = is_cpu ? 3000 : 300;
    std::vector<SdpaProblem> problems;
    std::vector<SdpaOperands> operands;
    std::vector<std::vector<std::uint8_t>> expected;
    for (std::int64_t i = 0; i < 5; ++i) {
      SdpaProblem problem =
          problem_of({3, 2, 1, 1 + i % 2, longest, longest, 32, 32, true}, DType::f16);
      if (i != 2) problem.kv_lengths = {longest - 31 * i, 1 + i, longest / (i + 1)};
      problems.push_back(problem);
      operands.push_back(random_operands(rng, device, problem));
      sdpa(device, operands.back(), problem);
      expected.push_back(bytes_of(operands.back().out));
    }
    for (int round = 0; round < 4; ++round) {
      std::vector<CommandEncoder> flying;
      for (std::size_t i = 0; i < problems.size(); ++i) {
        fill_bytes(operands[i].out, 0xff);
        flying.push_back(device.command_encoder());
        encode(device, flying.back(), operands[i], problems[i]);
        flying.back().commit();
      }
      flying.clear();  // nobody waits for these but the device
      device.synchronize();
      for (std::size_t i = 0; i < problems.size(); ++i) {
        INFO(kind, " round ", round, " problem ", i);
        CHECK(bytes_of(operands[i].out) == expected[i]);
      }
    }
  }
}

TEST_CASE("owners are kept while work is in flight, and let go once, when it is done") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    std::mt19937 rng(74);
    const SdpaProblem problem = square(length_for(device), 32);
    SdpaOperands x = random_operands(rng, device, problem);
    sdpa(device, x, problem);
    const auto expected = bytes_of(x.out);
    for (int round = 0; round < kRounds; ++round) {
      std::atomic<int> freed{0};
      {
        SdpaOperands own = x;
        for (Buffer* buffer : {&own.q, &own.k, &own.v}) {
          const Buffer copy = wrapped(device, freed, buffer->shape());
          std::memcpy(copy.data(), buffer->data(), buffer->byte_len());
          *buffer = copy;
        }
        fill_bytes(x.out, 0xff);
        CommandEncoder encoder(device);
        for (int i = 0; i < 3; ++i) encode(device, encoder, own, problem);
        encoder.commit();
      }  // every handle is gone while the work may still run
      device.synchronize();
      INFO(kind, " round ", round);
      CHECK(bytes_of(x.out) == expected);
      CHECK(freed == 3);
    }
  }
}

TEST_CASE("a graph keeps owners until it goes, and so do uncommitted encoders and slices") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    std::mt19937 rng(75);
    const SdpaProblem problem = square(8, 16);
    SdpaOperands x = random_operands(rng, device, problem);
    const auto keys = bytes_of(x.k);
    sdpa(device, x, problem);
    const auto expected = bytes_of(x.out);
    std::atomic<int> freed{0};
    const auto give_keys = [&] {
      x.k = wrapped(device, freed, x.k.shape());
      std::memcpy(x.k.data(), keys.data(), keys.size());
    };
    INFO(kind);
    give_keys();
    {
      CommandEncoder recorder(device);
      recorder.begin_capture();
      encode(device, recorder, x, problem);
      const Graph graph = recorder.end_capture();
      x.k = Buffer();
      CHECK(freed == 0);
      for (int i = 0; i < 2; ++i) {
        fill_bytes(x.out, 0xff);
        CommandEncoder encoder(device);
        graph.replay(encoder);
        encoder.commit_and_wait();
        CHECK(bytes_of(x.out) == expected);
      }
      CHECK(freed == 0);
    }
    device.synchronize();
    CHECK(freed == 1);
    x.k = filled(device, rng, x.v);
    give_keys();
    {
      CommandEncoder encoder(device);
      encode(device, encoder, x, problem);
      x.k = Buffer();
      CHECK(freed == 1);
    }  // dropped uncommitted
    CHECK(freed == 2);
    {
      const Buffer slice = wrapped(device, freed, {64}).slice_view(16, 4).slice_view(4, 1);
      CHECK(freed == 2);
    }
    CHECK(freed == 3);
  }
}

}  // namespace metal_sdpa::test
