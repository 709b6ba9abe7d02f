// The in-order queue.
#include "cpu/queue.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/text.h"
#include "cpu/execute.h"
#include "cpu/fp_mode.h"

namespace metal_sdpa::cpu {
namespace {

// Errors that nobody asks for: the oldest are enough.
constexpr std::size_t kMaxFailed = 64;

}  // namespace

Queue::~Queue() { shutdown(); }

bool Queue::at_front(const std::shared_ptr<Job>& job) const {
  return !running_ && !pending_.empty() && pending_.front() == job;
}

void Queue::submit(std::shared_ptr<Job> job) {
  const Lock lock(mutex_);
  pending_.push_back(std::move(job));
  start_thread();
  changed_.notify_all();
}

void Queue::run(const std::shared_ptr<Job>& job) {
  {
    Lock lock(mutex_);
    pending_.push_back(job);
    if (at_front(job)) {
      InterruptPoller poller;
      execute_front(lock, &poller);
    }
  }
  wait(job);
}

bool Queue::try_run(ImmediateWork& work) {
  {
    const Lock lock(mutex_);
    if (running_ || !pending_.empty()) return false;
    running_ = true;
    immediate_ = true;
  }
  struct Ending {
    Queue& queue;
    ~Ending() { queue.end_immediate(); }
  } const ending{*this};
  const FpModeScope fp_mode;
  InterruptPoller poller;
  work.run(pool_, poller);
  return true;
}

void Queue::end_immediate() noexcept {
  const Lock lock(mutex_);
  running_ = false;
  immediate_ = false;
  if (waiters_ > 0 || !pending_.empty()) changed_.notify_all();
}

void Queue::execute_front(Lock& lock, InterruptPoller* poller) {
  const std::shared_ptr<Job> job = pending_.front();
  running_ = true;
  lock.unlock();
  {
    const FpModeScope fp_mode;
    execute_job(*job, pool_, poller);
  }
  job->dispatches.clear();  // without the lock: letting go of memory may run its owner's code
  lock.lock();
  running_ = false;
  finish(job);
}

void Queue::finish(const std::shared_ptr<Job>& job) {
  job->done = true;
  pending_.erase(std::find(pending_.begin(), pending_.end(), job));
  if (!job->error.empty() && failed_.size() < kMaxFailed) failed_.push_back(job);
  // A lone caller that runs its own job wakes nobody.
  if (waiters_ > 0 || !pending_.empty()) changed_.notify_all();
}

void Queue::wait(const std::shared_ptr<Job>& job) {
  Lock lock(mutex_);
  InterruptPoller poller;
  while (!job->done) {
    if (at_front(job)) {
      execute_front(lock, &poller);
      continue;
    }
    ++waiters_;
    changed_.wait_for(lock, kInterruptPeriod);
    --waiters_;
    lock.unlock();  // the check may take another lock (Python's)
    const bool interrupted = poller.poll();
    lock.lock();
    if (interrupted) finish_interrupted(lock, job);
  }
  report(job);
}

void Queue::finish_interrupted(Lock& lock, const std::shared_ptr<Job>& job) {
  job->cancelled.store(true);
  const bool started = running_ && !immediate_ && !pending_.empty() && pending_.front() == job;
  if (!job->done && !started) {
    job->error = "the work was cancelled before it began";
    job->error_code = ErrorCode::interrupted;
    finish(job);
    lock.unlock();
    job->dispatches.clear();
    lock.lock();
    return;
  }
  ++waiters_;
  changed_.wait(lock, [&job] { return job->done; });
  --waiters_;
}

void Queue::report(const std::shared_ptr<Job>& job) {
  if (job->error.empty()) return;
  job->reported = true;
  failed_.erase(std::remove(failed_.begin(), failed_.end(), job), failed_.end());
  throw Error(job->error_code, job->error);
}

void Queue::drain(Lock& lock, InterruptPoller* poller) {
  while (running_ || !pending_.empty()) {
    if (!running_) {
      execute_front(lock, poller);
      continue;
    }
    ++waiters_;
    changed_.wait_for(lock, kInterruptPeriod);
    --waiters_;
    if (poller == nullptr) continue;
    lock.unlock();
    const bool interrupted = poller->poll();
    lock.lock();
    if (!interrupted) continue;
    for (const std::shared_ptr<Job>& job : pending_) job->cancelled.store(true);
  }
}

void Queue::synchronize() {
  Lock lock(mutex_);
  InterruptPoller poller;
  drain(lock, &poller);
  if (failed_.empty()) return;
  const std::shared_ptr<Job> first = failed_.front();
  failed_.clear();
  report(first);
}

void Queue::shutdown() noexcept {
  std::thread thread;
  {
    Lock lock(mutex_);
    drain(lock, nullptr);
    stopping_ = true;
    thread = std::move(thread_);
    changed_.notify_all();
  }
  if (thread.joinable()) thread.join();
  const Lock lock(mutex_);
  stopping_ = false;
  pool_.stop();
}

void Queue::start_thread() {
  if (!thread_.joinable()) thread_ = std::thread([this] { thread_loop(); });
}

void Queue::thread_loop() {
  Lock lock(mutex_);
  while (!stopping_) {
    if (!running_ && !pending_.empty()) {
      execute_front(lock, nullptr);
      continue;
    }
    ++waiters_;
    changed_.wait(lock);
    --waiters_;
  }
}

}  // namespace metal_sdpa::cpu
