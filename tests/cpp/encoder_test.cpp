// CommandEncoder: the state machine, validation, hazards, asynchronous errors, lifetimes.
#include <atomic>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

std::atomic<int> g_running{0};
std::atomic<int> g_most_running{0};

/// out[i] = in[i] + 1, one element a threadgroup; counts how many ranges run at once.
void add_one(const NativeLaunch& launch, WorkRange work, StopToken&) {
  const int now = ++g_running;
  int most = g_most_running.load();
  while (now > most && !g_most_running.compare_exchange_weak(most, now)) {
  }
  for (std::uint64_t i = work.begin; i < work.end; ++i) {
    launch.buffer<float>(1)[i] = launch.buffer<const float>(0)[i] + 1;
  }
  --g_running;
}

void throwing(const NativeLaunch&, WorkRange, StopToken&) { throw std::runtime_error("tripped"); }

void slow(const NativeLaunch&, WorkRange, StopToken& stop) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (std::chrono::steady_clock::now() < end && !stop.stop_requested()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

struct Fixture {
  Device device{"cpu"};
  KernelRegistry registry{device};
  Buffer a = device.empty({64}, DType::f32);
  Buffer b = device.empty({64}, DType::f32);
  Buffer c = device.empty({64}, DType::f32);

  Fixture() {
    registry.register_native("add_one", add_one);
    registry.register_native("throwing", throwing);
    registry.register_native("slow", slow);
  }
  void encode(CommandEncoder& encoder, const Buffer& in, const Buffer& out,
              const char* kernel = "add_one") const {
    encoder.encode_threadgroups(registry.get_pipeline(kernel), {{0, in}, {1, out}}, {64, 1, 1},
                                {1, 1, 1},
                                {{}, {{{in, 0, in.byte_len()}}}, {{{out, 0, out.byte_len()}}}});
  }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "dispatches of one command buffer see each other's results") {
  CommandEncoder encoder(device);
  encode(encoder, a, b);
  encode(encoder, b, c);
  CHECK(encoder.barrier_count() == 1);
  encoder.commit_and_wait();
  for (int i = 0; i < 64; ++i) CHECK(c.host<float>()[i] == 2);
  CHECK(encoder.gpu_time_s() >= 0);
}

TEST_CASE_FIXTURE(Fixture, "calls in the wrong state are refused") {
  CommandEncoder encoder(device);
  CHECK(error_of([&] { encoder.wait_until_completed(); }, "call commit first") ==
        ErrorCode::invalid_argument);
  CHECK(error_of([&] { (void)encoder.gpu_time_s(); }) == ErrorCode::invalid_argument);
  CHECK(error_of([&] { encoder.end_capture(); }) == ErrorCode::invalid_argument);
  encoder.begin_capture();
  CHECK(error_of([&] { encoder.begin_capture(); }) == ErrorCode::invalid_argument);
  CHECK(error_of([&] { encoder.commit(); }, "capture is open") == ErrorCode::invalid_argument);
  CHECK(error_of([&] { encoder.commit_and_wait(); }, "capture is open") ==
        ErrorCode::invalid_argument);
  encoder.end_capture();
  encoder.commit();
  CHECK(error_of([&] { encoder.commit(); }, "committed") == ErrorCode::invalid_argument);
  CHECK(error_of([&] { encode(encoder, a, b); }, "used once") == ErrorCode::invalid_argument);
  CHECK(error_of([&] { encoder.memory_barrier(); }) == ErrorCode::invalid_argument);
  CHECK(error_of([&] { encoder.set_op_kind(OpKind::sdpa); }) == ErrorCode::invalid_argument);
  encoder.wait_until_completed();
  encoder.wait_until_completed();
  CHECK(error_of([&] { encoder.commit_and_wait(); }, "completed") == ErrorCode::invalid_argument);
}

TEST_CASE_FIXTURE(Fixture, "what does not fit is refused before anything is recorded") {
  CommandEncoder encoder(device);
  const auto pipeline = registry.get_pipeline("add_one");
  const auto refuse = [&](const std::string& word, std::vector<Binding> bindings, GridSize grid,
                          GridSize size, DispatchOptions options = {}) {
    CHECK(error_of([&] { encoder.encode_threadgroups(pipeline, bindings, grid, size, options); },
                   word) == ErrorCode::invalid_argument);
  };
  refuse("threadgroups", {{0, a}}, {0, 1, 1}, {1, 1, 1});
  refuse("threadgroup_size", {{0, a}}, {1, 1, 1}, {1, 0, 1});
  refuse("at most 1024", {{0, a}}, {1, 1, 1}, {1025, 1, 1});
  refuse("2^63", {{0, a}}, {UINT32_MAX, UINT32_MAX, UINT32_MAX}, {1, 1, 1});
  refuse("index 31", {{31, a}}, {1, 1, 1}, {1, 1, 1});
  refuse("given twice", {{0, a}, {0, b}}, {1, 1, 1}, {1, 1, 1});
  refuse("takes 1 to 4096", {{0, InlineBytes(4097)}}, {1, 1, 1}, {1, 1, 1});
  refuse("takes 1 to 4096", {{0, InlineBytes()}}, {1, 1, 1}, {1, 1, 1});
  refuse("empty", {{0, Buffer()}}, {1, 1, 1}, {1, 1, 1});
  refuse("leave the view", {{0, a}}, {1, 1, 1}, {1, 1, 1}, {{}, {{{a, 200, 100}}}, {}});
  refuse("multiple of 16", {{0, a}}, {1, 1, 1}, {1, 1, 1}, {{{0, 24}}, {}, {}});
  refuse("at most 32768", {{0, a}}, {1, 1, 1}, {1, 1, 1}, {{{0, 32768}, {1, 16}}, {}, {}});
  refuse("given twice", {{0, a}}, {1, 1, 1}, {1, 1, 1}, {{{0, 16}, {0, 16}}, {}, {}});
  float constant = 0;
  const Buffer fixed = device.wrap({&constant, 4, true, nullptr}, DType::f32, {1});
  refuse("read-only", {{0, fixed}}, {1, 1, 1}, {1, 1, 1}, {{}, {}, {{{fixed, 0, 4}}}});
  CHECK(error_of([&] { encoder.encode_threadgroups(nullptr, {}, {1, 1, 1}, {1, 1, 1}); }) ==
        ErrorCode::invalid_argument);
  encoder.commit_and_wait();
}

TEST_CASE_FIXTURE(Fixture, "barriers follow byte ranges of storage, not handles") {
  const auto barriers = [&](const Buffer& x, const Buffer& y, const Buffer& u, const Buffer& w) {
    CommandEncoder encoder(device);
    encode(encoder, x, y, "throwing");
    encode(encoder, u, w, "throwing");
    return encoder.barrier_count();
  };
  const Buffer front = a.slice_view(0, 32);
  const Buffer back = a.slice_view(128, 32);
  CHECK(barriers(front, b, front, c) == 0);  // two readers
  CHECK(barriers(b, front, c, back) == 0);   // neighbours
  CHECK(barriers(b, front, c, a.slice_view(124, 33)) == 1);
  CHECK(barriers(front, b, b, c) == 1);  // read after write
  CHECK(barriers(b, c, a, b) == 1);      // write after read
  // Two wraps of the same memory are two storages over one address range.
  const Buffer once = device.wrap({a.data(), 256, false, nullptr}, DType::f32, {64});
  CHECK(barriers(b, once, a, c) == 1);

  CommandEncoder encoder(device);
  encode(encoder, a, b);
  encoder.encode_threadgroups(registry.get_pipeline("add_one"), {{0, c}, {1, c}}, {1, 1, 1},
                              {1, 1, 1});
  CHECK(encoder.barrier_count() == 1);  // undeclared conflicts with everything
  encode(encoder, a, b);
  CHECK(encoder.barrier_count() == 2);
  DispatchOptions none;
  none.reads.emplace();
  none.writes.emplace();
  encoder.encode_threadgroups(registry.get_pipeline("add_one"), {{0, c}, {1, c}}, {1, 1, 1},
                              {1, 1, 1}, none);
  CHECK(encoder.barrier_count() == 2);  // declared empty conflicts with nothing
  encoder.memory_barrier();
  CHECK(encoder.barrier_count() == 3);
}

TEST_CASE_FIXTURE(Fixture, "an error surfaces at wait, and later work is unaffected") {
  CommandEncoder bad(device);
  encode(bad, a, b, "throwing");
  bad.commit();
  CommandEncoder good(device);
  encode(good, a, c);
  good.commit();
  good.wait_until_completed();
  CHECK(c.host<float>()[63] == 1);
  CHECK(error_of([&] { bad.wait_until_completed(); }, "throwing: tripped") ==
        ErrorCode::command_buffer);
  CHECK(error_of([&] { bad.wait_until_completed(); }, "tripped") == ErrorCode::command_buffer);
  device.synchronize();  // it was reported
}

TEST_CASE_FIXTURE(Fixture, "an error that nobody waits for surfaces at synchronize, once") {
  {
    CommandEncoder bad(device);
    encode(bad, a, b, "throwing");
    bad.commit();
  }
  CHECK(error_of([&] { device.synchronize(); }, "tripped") == ErrorCode::command_buffer);
  device.synchronize();
}

TEST_CASE_FIXTURE(Fixture, "memory and pipelines live until the work is done") {
  auto memory = std::make_shared<std::vector<float>>(64, 1.0f);
  std::weak_ptr<std::vector<float>> watch = memory;
  {
    const Buffer in = device.wrap({memory->data(), 256, false, memory}, DType::f32, {64});
    CommandEncoder encoder(device);
    encode(encoder, in, b);
    encoder.commit();
    memory.reset();
  }
  device.synchronize();
  CHECK(watch.expired());
  CHECK(b.host<float>()[0] == 2);
}

TEST_CASE_FIXTURE(Fixture, "a dropped encoder is discarded") {
  {
    CommandEncoder encoder(device);
    encode(encoder, a, b);
  }
  device.synchronize();
  CHECK(b.host<float>()[0] == 0);
}

TEST_CASE_FIXTURE(Fixture, "command buffers run in the order of commit, from many threads") {
  constexpr int kRounds = 200;
  std::vector<std::thread> threads;
  std::vector<Buffer> counters;
  for (int t = 0; t < 4; ++t) counters.push_back(device.empty({64}, DType::f32));
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < kRounds; ++round) {
        CommandEncoder encoder(device);
        encode(encoder, counters[static_cast<std::size_t>(t)],
               counters[static_cast<std::size_t>(t)]);
        if (round % 3 == 0) {
          encoder.commit_and_wait();
        } else {
          encoder.commit();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  device.synchronize();
  for (const Buffer& counter : counters) CHECK(counter.host<float>()[17] == kRounds);
}

TEST_CASE_FIXTURE(Fixture, "an interrupt cancels the work, wherever it is") {
  set_interrupt_check([] { return true; });
  SUBCASE("on the calling thread") {
    CommandEncoder encoder(device);
    encode(encoder, a, b, "slow");
    CHECK(error_of([&] { encoder.commit_and_wait(); }) == ErrorCode::interrupted);
  }
  SUBCASE("on the queue's thread, and behind it") {
    CommandEncoder first(device);
    encode(first, a, b, "slow");
    first.commit();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    CommandEncoder second(device);
    encode(second, a, c, "slow");
    CHECK(error_of([&] { second.commit_and_wait(); }) == ErrorCode::interrupted);
    CHECK(error_of([&] { first.wait_until_completed(); }) == ErrorCode::interrupted);
  }
  set_interrupt_check(nullptr);
  device.synchronize();
  CommandEncoder encoder(device);
  encode(encoder, a, b);
  encoder.commit_and_wait();
  CHECK(b.host<float>()[0] == 1);
}

TEST_CASE_FIXTURE(Fixture, "shutdown finishes the work, and later work starts anew") {
  CommandEncoder encoder(device);
  encode(encoder, a, b);
  encoder.commit();
  shutdown();
  CHECK(b.host<float>()[5] == 1);
  CommandEncoder next(device);
  encode(next, b, c);
  next.commit();
  next.wait_until_completed();
  CHECK(c.host<float>()[5] == 2);
}

TEST_CASE("large grids are shared by threads, each range once") {
  const Device device("cpu", {2, ""});
  KernelRegistry registry(device);
  registry.register_native("add_one", add_one);
  const Buffer in = device.empty({1 << 16}, DType::f32);
  for (int round = 0; round < 20; ++round) {
    CommandEncoder encoder(device);
    encoder.encode_threadgroups(registry.get_pipeline("add_one"), {{0, in}, {1, in}},
                                {1 << 16, 1, 1}, {1, 1, 1});
    encoder.commit_and_wait();
  }
  bool right = true;
  for (int i = 0; i < 1 << 16; ++i) right = right && in.host<float>()[i] == 20;
  CHECK(right);
  CHECK(g_most_running.load() <= 2);
}
