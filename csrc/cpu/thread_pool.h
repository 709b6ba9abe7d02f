// Fork-join over a range of work: the caller takes part, workers join while there is work left.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <list>
#include <mutex>
#include <thread>

#include "core/interrupt.h"
#include "cpu/placement.h"
#include "cpu/thread_count.h"
#include "metal_sdpa/native_kernel.h"

namespace metal_sdpa::cpu {

/// What one fork-join runs: chunks of begin..end, handed out in increasing order, ever smaller
/// ones.
struct ParallelWork {
  NativeKernel kernel = nullptr;
  const NativeLaunch* launch = nullptr;
  std::uint64_t total = 0;
  bool dealt = false;                      ///< chunks are of one each
  std::atomic<bool>* cancelled = nullptr;  ///< read by everybody, set by the caller's poller
};

/// Used by one fork-join at a time; the queue sees to that.
class ThreadPool {
 public:
  explicit ThreadPool(int most_workers = kMaxThreads) : most_workers_(most_workers) {}
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  /// Runs all chunks on the calling thread and up to n_threads - 1 workers: fewer where the system
  /// gives no more threads. Polls `poller` (may be
  /// null) on the calling thread and cancels when it says so. Rethrows what a kernel threw.
  void run(int n_threads, const ParallelWork& work, InterruptPoller* poller);

  /// Ends and joins the workers; a later run starts new ones.
  void stop();

 private:
  struct Worker {
    int index = 0;
    WorkerPlace place;    ///< guarded by mutex_
    bool beside = false;  ///< sleeps where the caller or an earlier worker is; guarded by mutex_
    std::thread thread;
  };

  int start_workers(int count) noexcept;
  bool start_worker() noexcept;
  void wake_workers(int count);
  void worker_loop(Worker& self);
  std::uint64_t wait_for_work(Worker& self, std::uint64_t seen_epoch);
  bool enter(std::uint64_t& epoch, std::uint64_t seen_epoch, int index);
  void leave();
  void take_chunks(StopToken& stop);
  bool take_chunk(WorkRange& chunk);
  void keep_exception() noexcept;
  void wait_for_workers(InterruptPoller* poller);

  // Whether workers may enter, how many are inside, and the number of the fork-join:
  // epoch in the upper 32 bits, then one open bit, then the count.
  std::atomic<std::uint64_t> state_{0};
  std::atomic<std::uint64_t> next_{0};
  std::atomic<int> wanted_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stopping_{false};
  ParallelWork work_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::exception_ptr exception_;  ///< guarded by mutex_
  std::list<Worker> workers_;     ///< whose elements never move
  const int most_workers_;
  std::chrono::steady_clock::time_point retry_after_{};  ///< a worker could not be started
};

}  // namespace metal_sdpa::cpu
