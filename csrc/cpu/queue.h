// The CPU device's in-order queue of command buffers.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/backend.h"
#include "cpu/thread_pool.h"

namespace metal_sdpa::cpu {

/// One command buffer on its way through the queue.
struct Job {
  std::vector<Dispatch> dispatches;
  int threads = 1;
  std::atomic<bool> cancelled{false};
  double run_time_s = 0;

  // Guarded by the queue's mutex.
  bool done = false;
  bool reported = false;  ///< somebody was told of the error
  ErrorCode error_code = ErrorCode::command_buffer;
  std::string error;  ///< empty: fine
};

/// Work that is no command buffer and waits for nobody.
class ImmediateWork {
 public:
  virtual void run(ThreadPool& pool, InterruptPoller& poller) = 0;

 protected:
  ~ImmediateWork() = default;
};

/// Jobs run one at a time, in the order of submission: on the thread that waits for the job where
/// it can, else on the queue's own thread.
class Queue {
 public:
  ~Queue();

  /// Hands the job over and returns.
  void submit(std::shared_ptr<Job> job);
  /// submit and wait, on the calling thread when the queue is idle.
  void run(const std::shared_ptr<Job>& job);
  /// Runs the work on the calling thread where the queue is idle, ahead of whatever is submitted
  /// meanwhile; false, doing nothing, where it is not. What the work throws comes through.
  bool try_run(ImmediateWork& work);
  /// Throws the job's error. An interrupt cancels the job and waits until nothing of it runs.
  void wait(const std::shared_ptr<Job>& job);
  /// Waits for everything; throws the first error that nobody was told of.
  void synchronize();
  /// Finishes everything, then ends and joins all threads.
  void shutdown() noexcept;

 private:
  using Lock = std::unique_lock<std::mutex>;

  bool at_front(const std::shared_ptr<Job>& job) const;
  void end_immediate() noexcept;
  void execute_front(Lock& lock, InterruptPoller* poller);
  void finish(const std::shared_ptr<Job>& job);
  void finish_interrupted(Lock& lock, const std::shared_ptr<Job>& job);
  void report(const std::shared_ptr<Job>& job);
  void start_thread();
  void thread_loop();
  void drain(Lock& lock, InterruptPoller* poller);

  std::mutex mutex_;
  std::condition_variable changed_;           ///< a job came, or one is done
  std::deque<std::shared_ptr<Job>> pending_;  ///< the running job stays at the front
  bool running_ = false;                      ///< the front job, or immediate work
  bool immediate_ = false;                    ///< the latter
  bool stopping_ = false;
  int waiters_ = 0;
  std::vector<std::shared_ptr<Job>> failed_;  ///< errors that nobody was told of
  std::thread thread_;
  ThreadPool pool_;
};

}  // namespace metal_sdpa::cpu
