// After fork the CPU device works in the child; encoders and graphs from before raise.
#include <sys/wait.h>
#include <unistd.h>

#include <cfenv>
#include <chrono>
#include <thread>

#include "problems.h"
#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

/// Runs `child` in a child process; true where it returned true.
bool in_child(const std::function<bool()>& child) {
  const pid_t pid = fork();
  REQUIRE(pid >= 0);
  if (pid == 0) {
    bool fine = false;
    try {
      fine = child();
    } catch (...) {
    }
    _exit(fine ? 0 : 1);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void sleepy(const NativeLaunch&, WorkRange, StopToken&) {
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
}

struct Attention {
  Device device{"cpu", {2, ""}};
  SdpaProblem problem;
  SdpaOperands operands;

  Attention() {
    std::mt19937 rng(1);
    problem.n_heads = problem.n_kv_heads = 8;
    problem.seq_len = problem.kv_capacity = problem.kv_len = 64;
    problem.head_dim = problem.value_dim = 32;
    problem.set_packed_layouts();
    operands = random_operands(rng, device, problem);
  }
};

}  // namespace

TEST_CASE("the child computes, with threads, the same bits") {
  Attention attention;
  sdpa(attention.device, attention.operands, attention.problem);
  const std::vector<std::uint8_t> want = bytes_of(attention.operands.out);
  CHECK(in_child([&] {
    fill_bytes(attention.operands.out, 0);
    sdpa(attention.device, attention.operands, attention.problem);
    CommandEncoder encoder(attention.device);
    encoder.commit();
    encoder.wait_until_completed();
    return bytes_of(attention.operands.out) == want;
  }));
}

TEST_CASE("a fork while work is in flight leaves a working child") {
  Attention attention;
  KernelRegistry registry(attention.device);
  registry.register_native("sleepy", sleepy);
  CommandEncoder encoder(attention.device);
  encoder.encode_threadgroups(registry.get_pipeline("sleepy"), {}, {1, 1, 1}, {1, 1, 1});
  encoder.commit();
  CHECK(in_child([&] {
    sdpa(attention.device, attention.operands, attention.problem);
    attention.device.synchronize();
    return true;
  }));
  encoder.wait_until_completed();
}

TEST_CASE("encoders and graphs from before the fork raise in the child") {
  Attention attention;
  CommandEncoder encoder(attention.device);
  CommandEncoder recorder(attention.device);
  recorder.begin_capture();
  Graph graph = recorder.end_capture();
  CHECK(in_child([&] {
    const auto raises = [](const std::function<void()>& call) {
      try {
        call();
      } catch (const Error& error) {
        return error.code() == ErrorCode::invalid_argument &&
               std::string(error.what()).find("fork") != std::string::npos;
      }
      return false;
    };
    CommandEncoder fresh(attention.device);
    return raises([&] { encoder.commit_and_wait(); }) && raises([&] { encoder.begin_capture(); }) &&
           raises([&] { graph.replay(fresh); }) && raises([&] { graph.nodes(); });
  }));
  encoder.commit_and_wait();
}

TEST_CASE("the caller's rounding mode is kept and does not reach the result") {
  Attention attention;
  sdpa(attention.device, attention.operands, attention.problem);
  const std::vector<std::uint8_t> want = bytes_of(attention.operands.out);
  std::fesetround(FE_UPWARD);
  sdpa(attention.device, attention.operands, attention.problem);
  CHECK(std::fegetround() == FE_UPWARD);
  std::thread([&] {  // threads inherit the mode of their creator
    const Device many("cpu", {3, ""});
    sdpa(many, attention.operands, attention.problem);
  })
      .join();
  std::fesetround(FE_TONEAREST);
  CHECK(bytes_of(attention.operands.out) == want);
}
