// A system that has no threads to give. A program of its own: the child of a process that has had
// threads is more than ThreadSanitizer follows.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <system_error>
#include <thread>

#include "cpu_kernels.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

void add_one(const NativeLaunch& launch, WorkRange work, StopToken&) {
  for (std::uint64_t i = work.begin; i < work.end; ++i) {
    launch.buffer<float>(1)[i] = launch.buffer<const float>(0)[i] + 1;
  }
}

KernelRegistry registry_of(const Device& device) {
  KernelRegistry registry(device);
  registry.register_native("add_one", add_one);
  return registry;
}

CommandEncoder adding(const KernelRegistry& registry, const Buffer& from, const Buffer& to) {
  CommandEncoder encoder(registry.device());
  encoder.encode_threadgroups(registry.get_pipeline("add_one"), {{0, from}, {1, to}}, {8, 1, 1},
                              {1, 1, 1});
  return encoder;
}

/// The limit and the user stay as they are for the process that tests.
bool succeeds_in_child(const std::function<bool()>& work) {
  const pid_t pid = fork();
  REQUIRE(pid >= 0);
  if (pid == 0) {
    bool fine = false;
    try {
      fine = work();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "in the child: %s\n", error.what());
    }
    _exit(fine ? 0 : 1);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

TEST_CASE("a system that gives no threads: the caller's own does everything") {
  CHECK(succeeds_in_child([] {
    alarm(60);
    const Device device("cpu", {4, ""});
    const KernelRegistry registry = registry_of(device);
    const Buffer a = device.empty({8}, DType::f32);
    const Buffer b = device.empty({8}, DType::f32);
    const Buffer c = device.empty({8}, DType::f32);
    std::mt19937 rng(61);
    const SdpaProblem p = prefill_problem(DType::f32, 2, 300, 2000, 64, 64);
    const SdpaOperands x = random_operands(rng, device, p);
    sdpa(device, x, p);
    const auto want = bytes_of(x.out);
    const auto computes = [&] {
      fill_bytes(x.out, 0xff);
      sdpa(device, x, p);
      return bytes_of(x.out) == want;
    };
    shutdown();
    if (getuid() == 0 && setuid(65533) != 0) return false;  // root has no such limit
    const rlimit none{1, 1};
    if (setrlimit(RLIMIT_NPROC, &none) != 0) return false;
    try {
      std::thread([] {}).join();
      return false;
    } catch (const std::system_error&) {
    }
    bool right = computes();
    for (int round = 0; round < 2; ++round) {
      CommandEncoder waited = adding(registry, a, b);
      waited.commit();
      waited.wait_until_completed();
      adding(registry, b, c).commit();  // nobody waits for this one
      right = right && computes() && c.host<float>()[0] == static_cast<float>(2 + 2 * round);
      adding(registry, c, a).commit();
      device.synchronize();
      a.host<float>()[0] -= 1;
      shutdown();
      right = right && a.host<float>()[0] == static_cast<float>(2 + 2 * round);
    }
    return right && computes();
  }));
}
