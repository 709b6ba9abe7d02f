// Keeps a sleeping worker from waking on a processor that its fork-join already uses.
//
// Schedulers wake a thread where it ran last or beside the thread that wakes it. In a virtual
// machine Linux was seen to do so though that processor was busy and another one idle (it may take
// a halted virtual processor for one that the host has taken away: vcpu_is_preempted). The two
// threads then take turns, and a call of a few milliseconds is over before load balancing moves one
// of them.
#pragma once

#if defined(__linux__)
#include <sched.h>
#include <sys/types.h>
#endif

namespace metal_sdpa::cpu {

/// Processors by number. Elsewhere than on Linux, and from number 1024 on, it stays empty.
class ProcessorSet {
 public:
  ProcessorSet() noexcept;
  /// False where it is already there. Negative numbers are ignored.
  bool add(int processor) noexcept;

 private:
  friend class WorkerPlace;
#if defined(__linux__)
  cpu_set_t set_;
#endif
};

/// The processor that the calling thread is on; -1 where that is not known.
int current_processor() noexcept;

/// Where one worker sleeps. Its calls, and those of who wakes it, are under the pool's mutex; only
/// `settle` need not be.
class WorkerPlace {
 public:
  /// By the worker, before it sleeps.
  void note() noexcept;
  /// By the worker, awake.
  void forget() noexcept { processor_ = -1; }
  /// By the worker, after `forget`: it may run again wherever it might before `keep_off`.
  void settle() noexcept;

  /// Where the worker sleeps; -1 where it is awake or that is not known.
  int processor() const noexcept { return processor_; }
  /// The sleeping worker is to wake elsewhere than on `taken`, save where it sleeps if `stay`.
  /// Nothing happens where it may run nowhere else, or the system does not let us.
  void keep_off(const ProcessorSet& taken, bool stay) noexcept;

 private:
  int processor_ = -1;
#if defined(__linux__)
  pid_t thread_ = 0;
  bool narrowed_ = false;
  cpu_set_t allowed_{};  ///< what the worker had before it was narrowed
#endif
};

}  // namespace metal_sdpa::cpu
