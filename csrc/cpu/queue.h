// The CPU device's in-order queue of command buffers.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/interrupt.h"
#include "cpu/job.h"
#include "cpu/thread_pool.h"

namespace metal_sdpa::cpu {

/// Work that is no command buffer and waits for nobody.
class ImmediateWork {
 public:
  virtual void run(ThreadPool& pool, InterruptPoller& poller) = 0;

 protected:
  ~ImmediateWork() = default;
};

/// Jobs run one at a time, in the order of submission: on the thread that waits for the job where
/// it can, else on the queue's own thread. Where the system has no thread for the queue, jobs that
/// nobody waits for are run by whoever waits for something behind them.
///
/// A thread may come back while it runs something here: the interrupt check that running work asks
/// is the caller's code (a Python signal handler). Immediate work then runs at once, on that thread
/// alone. Jobs do too, in their order, where what is suspended is immediate work; a job that is
/// suspended cannot be waited for, nor anything behind it: InvalidArgument.
class Queue {
 public:
  Queue();
  ~Queue();

  /// Hands the job over and returns.
  void submit(const std::shared_ptr<Job>& job);
  /// submit and wait, on the calling thread when the queue is idle.
  void run(const std::shared_ptr<Job>& job);
  /// Runs the work on the calling thread where the queue is idle, ahead of whatever is submitted
  /// meanwhile; false, doing nothing, where it is not. What the work throws comes through.
  bool try_run(ImmediateWork& work);
  /// Throws the job's error. An interrupt cancels the job and waits until nothing of it runs.
  void wait(const std::shared_ptr<Job>& job);
  /// Waits for what was begun before; throws the first error that nobody was told of. An interrupt
  /// cancels those of the jobs that this thread submitted, and no others.
  void synchronize();
  /// Waits for what was begun before, then ends and joins all threads. Does nothing on a thread
  /// whose own work is suspended.
  void shutdown() noexcept;

 private:
  using Lock = std::unique_lock<std::mutex>;
  enum class Running { nothing, immediate, job };
  enum class Start { now, nested, later };

  bool is_suspended_here() const;
  void require_nothing_suspended(const char* call) const;
  bool may_run(const Job& next, bool wanted) const;
  bool may_nest() const;
  bool is_orphan(const Job& job) const;
  bool is_done(std::uint64_t last) const;
  std::shared_ptr<Job> next_job() const;

  void add(const std::shared_ptr<Job>& job);
  void await(Lock& lock, const std::shared_ptr<Job>& job);
  void await_turn(Lock& lock, const Job& job);
  bool pause(Lock& lock, InterruptPoller& poller);
  void execute(Lock& lock, std::shared_ptr<Job> job, InterruptPoller* poller);
  void finish(const std::shared_ptr<Job>& job);
  void cancel(Lock& lock, const std::shared_ptr<Job>& job);
  void cancel_own(Lock& lock, std::uint64_t last);
  void report(const std::shared_ptr<Job>& job);
  Start begin_immediate();
  void run_nested(ImmediateWork& work);
  void end_immediate() noexcept;
  void start_thread() noexcept;
  void thread_loop(std::uint64_t number);

  std::mutex mutex_;
  std::condition_variable changed_;  ///< a job came, or one is done
  JobLine pending_;                  ///< the running job stays in line
  Running running_ = Running::nothing;
  const Job* running_job_ = nullptr;    ///< nullptr: none, or immediate work
  std::thread::id runner_;              ///< of what is running
  std::uint64_t immediate_number_ = 0;  ///< of immediate work that is running, as of a job
  std::uint64_t last_number_ = 0;
  int waiters_ = 0;
  std::vector<std::shared_ptr<Job>> failed_;  ///< errors that nobody was told of
  std::thread thread_;
  std::uint64_t thread_number_ = 0;  ///< a thread of another number ends
  ThreadPool pool_;
};

}  // namespace metal_sdpa::cpu
