// The default number of threads: affinity mask, cgroup quota, environment at load.
#include "cpu/thread_count.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

#include "core/text.h"
#include "metal_sdpa/device.h"

namespace metal_sdpa {
namespace cpu {
namespace {

int affinity_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

/// CPUs that a quota of `quota` microseconds in each `period` pays for; 0: no limit.
int quota_cpus(double quota, double period) {
  if (quota <= 0 || period <= 0) return 0;
  return std::max(1, static_cast<int>(std::ceil(quota / period)));
}

/// The quota of this process's own cgroup (version 2, then version 1); 0: no limit or no cgroup.
int cgroup_cpus() {
  std::string quota;
  double period = 0;
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  if (v2 >> quota >> period)
    return quota == "max" ? 0 : quota_cpus(std::atof(quota.c_str()), period);
  std::ifstream v1_quota("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream v1_period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double quota_us = 0;
  if (v1_quota >> quota_us && v1_period >> period) return quota_cpus(quota_us, period);
  return 0;
}

/// METAL_SDPA_NUM_THREADS as it was when the library was loaded; empty: not set.
const std::string& threads_from_environment() {
  static const std::string* const text = [] {
    const char* found = std::getenv("METAL_SDPA_NUM_THREADS");
    return new std::string(found == nullptr ? "" : found);
  }();
  return *text;
}

/// The number that `text` is, 1 to kMaxThreads; 0: it is none.
int to_thread_count(const std::string& text) {
  int count = 0;
  const char* end = text.data() + text.size();
  const auto [parsed, error] = std::from_chars(text.data(), end, count);
  const bool is_number = error == std::errc() && parsed == end;
  return is_number && count >= 1 && count <= kMaxThreads ? count : 0;
}

int default_threads() {
  const int asked = to_thread_count(threads_from_environment());
  return asked > 0 ? asked : available_cpus();
}

// Set while the library is loaded: the environment is not read after that.
std::atomic<int> g_num_threads{default_threads()};

}  // namespace

int available_cpus() {
  int cpus = std::max(1, affinity_cpus());
  const int quota = cgroup_cpus();
  if (quota > 0) cpus = std::min(cpus, quota);
  return std::min(cpus, kMaxThreads);
}

void require_valid_environment() {
  const std::string& text = threads_from_environment();
  if (text.empty() || to_thread_count(text) > 0) return;
  fail_argument("METAL_SDPA_NUM_THREADS: \"", text, "\", takes 1 to ", kMaxThreads);
}

}  // namespace cpu

int get_num_threads() noexcept { return cpu::g_num_threads.load(); }

void set_num_threads(int n_threads) {
  if (n_threads < 1 || n_threads > cpu::kMaxThreads) {
    fail_argument("set_num_threads: n_threads: ", n_threads, ", takes 1 to ", cpu::kMaxThreads);
  }
  cpu::g_num_threads.store(n_threads);
}

}  // namespace metal_sdpa
