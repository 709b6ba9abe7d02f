// The CPU device's queue beside other threads: who waits for what, whom an interrupt cancels, what
// an interrupt check may call, shutdown() at any time.
#include <atomic>
#include <chrono>
#include <future>
#include <thread>
#include <utility>

#include "cpu_kernels.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;
using namespace std::chrono_literals;

namespace {

constexpr auto kVeryLong = 20s;

std::atomic<bool> g_open{false};
std::atomic<int> g_at_gate{0};
std::atomic<int> g_rings{0};

void add_one(const NativeLaunch& launch, WorkRange work, StopToken&) {
  for (std::uint64_t i = work.begin; i < work.end; ++i) {
    launch.buffer<float>(1)[i] = launch.buffer<const float>(0)[i] + 1;
  }
}

void ring(const NativeLaunch&, WorkRange, StopToken&) { ++g_rings; }

void nap(const NativeLaunch&, WorkRange, StopToken&) { std::this_thread::sleep_for(3ms); }

/// Asks to be stopped until the gate is open.
void wait_at_gate(const NativeLaunch&, WorkRange, StopToken& stop) {
  ++g_at_gate;
  const auto end = std::chrono::steady_clock::now() + kVeryLong;
  while (!g_open && !stop.stop_requested() && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(1ms);
  }
}

/// What the interrupt check does on the thread that sets it.
thread_local std::function<bool()> t_check;

bool run_check() { return t_check && t_check(); }

/// An interrupt check for this thread's calls.
class CheckScope {
 public:
  explicit CheckScope(std::function<bool()> check) {
    t_check = std::move(check);
    set_interrupt_check(run_check);
  }
  ~CheckScope() {
    set_interrupt_check(nullptr);
    t_check = nullptr;
  }
};

class Fixture {
 public:
  Device device{"cpu", {2, ""}};
  KernelRegistry registry{device};
  Buffer a = device.empty({8}, DType::f32);
  Buffer b = device.empty({8}, DType::f32);
  Buffer c = device.empty({8}, DType::f32);

  Fixture() {
    g_open = false;
    g_at_gate = 0;
    registry.register_native("add_one", add_one);
    registry.register_native("nap", nap);
    registry.register_native("ring", ring);
    registry.register_native("wait_at_gate", wait_at_gate);
  }

  CommandEncoder encoder_of(const char* kernel) const { return encoder_of(kernel, a, b); }
  CommandEncoder encoder_of(const char* kernel, const Buffer& from, const Buffer& to) const {
    CommandEncoder encoder(device);
    const auto pipeline = registry.get_pipeline(kernel);
    encoder.encode_threadgroups(pipeline, {{0, from}, {1, to}}, {8, 1, 1}, {1, 1, 1});
    return encoder;
  }
};

/// A call of sdpa() whose result is known.
class Call {
 public:
  Call(const Device& device, std::int64_t rows, std::int64_t keys) : device_(device) {
    std::mt19937 rng(41);
    problem_ = prefill_problem(DType::f32, 2, rows, keys, 64, 64);
    operands_ = random_operands(rng, device, problem_);
    sdpa(device, operands_, problem_);
    want_ = bytes_of(operands_.out);
  }

  bool is_right() const {
    fill_bytes(operands_.out, 0xff);
    sdpa(device_, operands_, problem_);
    return bytes_of(operands_.out) == want_;
  }

 private:
  Device device_;
  SdpaProblem problem_;
  SdpaOperands operands_;
  std::vector<std::uint8_t> want_;
};

bool refuses(const std::function<void()>& call, const char* word) {
  try {
    call();
  } catch (const Error& error) {
    return error.code() == ErrorCode::invalid_argument &&
           std::string(error.what()).find(word) != std::string::npos;
  }
  return false;
}

/// Whether `wait` returns while two other threads keep the queue full, and after how many of their
/// jobs.
void check_returns_beside_callers(const std::function<void()>& wait) {
  const Fixture x;
  std::atomic<bool> stop{false};
  std::atomic<int> jobs{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 2; ++i) {
    callers.emplace_back([&] {
      while (!stop) {
        x.encoder_of("nap").commit_and_wait();
        ++jobs;
      }
    });
  }
  while (jobs < 4) std::this_thread::sleep_for(1ms);
  const int before = jobs;
  std::future<int> after = std::async(std::launch::async, [&] {
    wait();
    return jobs.load();
  });
  const bool returned = after.wait_for(10s) == std::future_status::ready;
  stop = true;
  for (std::thread& caller : callers) caller.join();
  REQUIRE(returned);
  CHECK(after.get() - before <= 6);  // one that runs, one behind it, those of a late wake-up
}

/// Runs each of `work` on a thread of its own, beside `n_shutdowns` threads that call shutdown()
/// until all are done.
void run_beside_shutdowns(int n_shutdowns, const std::vector<std::function<void()>>& work) {
  std::atomic<std::size_t> working{work.size()};
  std::vector<std::thread> threads;
  for (int i = 0; i < n_shutdowns; ++i) {
    threads.emplace_back([&] {
      while (working > 0) shutdown();
    });
  }
  for (const std::function<void()>& run : work) {
    threads.emplace_back([&] {
      run();
      --working;
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

TEST_CASE("synchronize and shutdown wait for what was committed before, not for an idle device") {
  check_returns_beside_callers([] { Device("cpu").synchronize(); });
  check_returns_beside_callers([] { shutdown(); });
}

TEST_CASE("synchronize waits for all that was committed before") {
  const Fixture x;
  x.a.host<float>()[3] = 1;
  CommandEncoder gate = x.encoder_of("wait_at_gate");
  CommandEncoder first = x.encoder_of("add_one", x.a, x.b);
  CommandEncoder second = x.encoder_of("add_one", x.b, x.c);
  std::thread([&] { gate.commit(), first.commit(), second.commit(); }).join();
  std::thread opener([] {
    std::this_thread::sleep_for(30ms);
    g_open = true;
  });
  x.device.synchronize();
  CHECK(x.c.host<float>()[3] == 3);
  opener.join();
}

TEST_CASE("an interrupt of synchronize cancels the work of its own thread alone") {
  CHECK(within_seconds(60, [] {
    const Fixture x;
    CommandEncoder theirs = x.encoder_of("wait_at_gate");
    std::thread([&] { theirs.commit(); }).join();
    while (g_at_gate == 0) std::this_thread::sleep_for(1ms);
    CommandEncoder ours = x.encoder_of("add_one");
    x.b.host<float>()[0] = -7;
    ours.commit();
    bool interrupted = false;
    {
      const CheckScope check([] { return true; });
      try {
        x.device.synchronize();
      } catch (const Error& error) {
        interrupted = error.code() == ErrorCode::interrupted;
      }
    }
    g_open = true;
    theirs.wait_until_completed();  // throws where it was cancelled
    x.device.synchronize();         // what was cancelled has been told
    bool cancelled = false;
    try {
      ours.wait_until_completed();
    } catch (const Error& error) {
      cancelled = error.code() == ErrorCode::interrupted;
    }
    x.device.synchronize();  // nothing is left to report
    return interrupted && cancelled && x.b.host<float>()[0] == -7;
  }));
}

TEST_CASE("an interrupt of synchronize stops what runs for its own thread") {
  CHECK(within_seconds(60, [] {
    const Fixture x;
    CommandEncoder ours = x.encoder_of("wait_at_gate");
    ours.commit();
    const CheckScope check([] { return true; });
    try {
      x.device.synchronize();
    } catch (const Error& error) {
      return error.code() == ErrorCode::interrupted;
    }
    return false;
  }));
}

TEST_CASE("an interrupt check may call the library in the middle of sdpa") {
  CHECK(within_seconds(120, [] {
    const Fixture x;
    const Call outer(x.device, 512, 16384);
    const Call inner(x.device, 40, 700);
    bool computed = false;
    bool in_order = false;
    int checks = 0;
    const CheckScope check([&] {
      if (checks++ > 0) return false;
      computed = inner.is_right();
      x.a.host<float>()[0] = 1;
      std::thread([&] { x.encoder_of("add_one", x.a, x.b).commit(); }).join();
      x.encoder_of("add_one", x.b, x.c).commit_and_wait();
      in_order = x.c.host<float>()[0] == 3;
      x.encoder_of("add_one", x.c, x.a).commit();
      computed = computed && inner.is_right() && x.a.host<float>()[0] == 4;
      x.device.synchronize();
      shutdown();  // does nothing there
      return false;
    });
    const bool right = outer.is_right();
    return checks > 0 && computed && in_order && right && outer.is_right();
  }));
}

TEST_CASE("an interrupt check is refused what would wait for the work it holds up") {
  CHECK(within_seconds(60, [] {
    const Fixture x;
    const Call inner(x.device, 40, 700);
    bool fine = false;
    CommandEncoder late = x.encoder_of("add_one");
    bool entered = false;
    const CheckScope check([&] {
      if (std::exchange(entered, true)) return false;  // calls inside ask again
      const char* text = "in the middle of work";
      fine = inner.is_right() && refuses([&] { x.device.synchronize(); }, text) &&
             refuses([&] { x.encoder_of("add_one").commit_and_wait(); }, text);
      late.commit();
      fine = fine && refuses([&] { late.wait_until_completed(); }, text) &&
             refuses([&] { inner.is_right(); }, text);  // behind what this thread has committed
      shutdown();
      g_open = true;
      return false;
    });
    x.a.host<float>()[5] = 1;
    x.encoder_of("wait_at_gate").commit_and_wait();
    late.wait_until_completed();
    return fine && x.b.host<float>()[5] == 2 && inner.is_right();
  }));
}

TEST_CASE("an interrupt check may call the library while its thread waits for another's work") {
  CHECK(within_seconds(60, [] {
    const Fixture x;
    CommandEncoder theirs = x.encoder_of("wait_at_gate");
    theirs.commit();
    while (g_at_gate == 0) std::this_thread::sleep_for(1ms);  // the queue's thread has it
    bool done = false;
    const CheckScope check([&] {
      if (g_open) return false;
      g_open = true;
      x.a.host<float>()[0] = 1;
      x.encoder_of("add_one").commit_and_wait();
      x.device.synchronize();
      done = x.b.host<float>()[0] == 2;
      return false;
    });
    theirs.wait_until_completed();
    return done;
  }));
}

TEST_CASE("shutdown from many threads, beside calls and commits") {
  CHECK(within_seconds(120, [] {
    const Fixture x;
    std::atomic<bool> right{true};
    const auto call = [&] {
      const Call known(Device("cpu", {3, ""}), 60, 300);
      for (int round = 0; round < 100; ++round) right = right && known.is_right();
    };
    const auto commit = [&] {
      const Buffer to = x.device.empty({8}, DType::f32);
      for (int round = 0; round < 1500; ++round) {
        CommandEncoder encoder = x.encoder_of("add_one", x.a, to);
        fill_bytes(to, 0xff);
        encoder.commit();
        encoder.wait_until_completed();
        right = right && to.host<float>()[7] == 1;
      }
    };
    run_beside_shutdowns(4, {commit});
    run_beside_shutdowns(1, {call, call});
    run_beside_shutdowns(3, {call, commit, call});
    return right.load();
  }));
}

TEST_CASE("memory goes back when work is done or cancelled, also where its encoder is kept") {
  CHECK(within_seconds(60, [] {
    const Fixture x;
    std::atomic<int> freed{0};
    std::vector<float> numbers(16);
    const auto counted = [&] {
      const std::shared_ptr<void> owner(numbers.data(), [&](void*) { ++freed; });
      return x.device.wrap({numbers.data(), 64, false, owner}, DType::f32, {16});
    };
    CommandEncoder done = x.encoder_of("add_one", x.a, counted());
    if (freed != 0) return false;
    done.commit_and_wait();
    if (freed != 1) return false;
    CommandEncoder first = x.encoder_of("wait_at_gate");
    std::thread([&] { first.commit(); }).join();
    while (g_at_gate == 0) std::this_thread::sleep_for(1ms);
    CommandEncoder cancelled = x.encoder_of("add_one", x.a, counted());
    cancelled.commit();
    {
      const CheckScope check([] { return true; });
      try {
        cancelled.wait_until_completed();
        return false;
      } catch (const Error&) {
      }
    }
    const bool given_back = freed == 2;
    g_open = true;
    first.wait_until_completed();
    return given_back;
  }));
}

TEST_CASE("what is committed while shutdown waits is run, although nobody waits for it") {
  CHECK(within_seconds(60, [] {
    const Fixture x;
    // How long it takes shutdown() to stand in line is the system's affair.
    for (const auto patience : {30ms, 100ms, 300ms, 900ms}) {
      g_open = false;
      g_at_gate = g_rings = 0;
      CommandEncoder running = x.encoder_of("wait_at_gate");
      running.commit();
      while (g_at_gate == 0) std::this_thread::sleep_for(1ms);
      std::thread ending([] { shutdown(); });
      std::this_thread::sleep_for(patience);
      CommandEncoder late = x.encoder_of("ring");
      late.commit();
      g_open = true;
      ending.join();
      for (int i = 0; i < 8000 && g_rings == 0; ++i) std::this_thread::sleep_for(1ms);
      if (g_rings == 0) return false;
    }
    return true;
  }));
}

TEST_CASE("what a kernel throws fails its command buffer, whatever it is") {
  Fixture x;
  x.registry.register_native("throw_number",
                             [](const NativeLaunch&, WorkRange, StopToken&) { throw 7; });
  CHECK(error_of([&] { x.encoder_of("throw_number").commit_and_wait(); }, "throw_number") ==
        ErrorCode::command_buffer);
  CommandEncoder later = x.encoder_of("throw_number");
  later.commit();
  CHECK(error_of([&] { later.wait_until_completed(); }, "throw_number") ==
        ErrorCode::command_buffer);
  x.encoder_of("add_one").commit_and_wait();
}
