// Placement through the affinity of the worker: narrowed while it sleeps, given back once it runs.
#include "cpu/placement.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace metal_sdpa::cpu {

#if defined(__linux__)

ProcessorSet::ProcessorSet() noexcept { CPU_ZERO(&set_); }

bool ProcessorSet::add(int processor) noexcept {
  if (processor < 0 || processor >= CPU_SETSIZE) return true;
  if (CPU_ISSET(processor, &set_)) return false;
  CPU_SET(processor, &set_);
  return true;
}

int current_processor() noexcept { return sched_getcpu(); }

void WorkerPlace::note() noexcept {
  thread_ = static_cast<pid_t>(syscall(SYS_gettid));
  processor_ = current_processor();
}

void WorkerPlace::keep_off(const ProcessorSet& taken, bool stay) noexcept {
  // A worker that slept on without having run is still narrowed.
  if (!narrowed_ && sched_getaffinity(thread_, sizeof(allowed_), &allowed_) != 0) return;
  cpu_set_t rest;
  CPU_AND(&rest, &allowed_, &taken.set_);
  CPU_XOR(&rest, &allowed_, &rest);
  if (stay && processor_ < CPU_SETSIZE) CPU_SET(processor_, &rest);
  if (CPU_COUNT(&rest) == 0) return;
  if (sched_setaffinity(thread_, sizeof(rest), &rest) == 0) narrowed_ = true;
}

void WorkerPlace::settle() noexcept {
  if (!narrowed_) return;
  narrowed_ = false;
  sched_setaffinity(0, sizeof(allowed_), &allowed_);
}

#else

ProcessorSet::ProcessorSet() noexcept = default;
bool ProcessorSet::add(int) noexcept { return true; }
int current_processor() noexcept { return -1; }
void WorkerPlace::note() noexcept {}
void WorkerPlace::keep_off(const ProcessorSet&, bool) noexcept {}
void WorkerPlace::settle() noexcept {}

#endif

}  // namespace metal_sdpa::cpu
