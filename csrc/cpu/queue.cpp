// The in-order queue.
#include "cpu/queue.h"

#include <utility>

#include "core/text.h"
#include "cpu/execute.h"
#include "cpu/fp_mode.h"
#include "cpu/thread_scratch.h"

namespace metal_sdpa::cpu {
namespace {

// Errors that nobody asks for: the oldest are enough.
constexpr std::size_t kMaxFailed = 64;

void run_job(Job& job, ThreadPool& pool, InterruptPoller* poller) noexcept {
  const FpModeScope fp_mode;
  execute_job(job, pool, poller);
}

/// On a thread whose own work is suspended: that work has the pool and the thread's memory.
void run_job_nested(Job& job, InterruptPoller* poller) noexcept {
  ThreadPool alone(0);
  const ScratchAside aside;
  run_job(job, alone, poller);
}

}  // namespace

Queue::Queue() { failed_.reserve(kMaxFailed); }

Queue::~Queue() { shutdown(); }

bool Queue::is_suspended_here() const {
  return running_ != Running::nothing && runner_ == std::this_thread::get_id();
}

void Queue::require_nothing_suspended(const char* call) const {
  if (running_ != Running::job || !is_suspended_here()) return;
  fail_argument(call,
                ": called by a signal handler (or interrupt check) in the middle of work that ",
                "it would wait for; sdpa() of complete inputs is what can run there");
}

/// Whose turn it is. Suspended work keeps threads from being ended, so that on its thread such jobs
/// are passed over.
std::shared_ptr<Job> Queue::next_job() const {
  if (!is_suspended_here()) return pending_.front();
  return pending_.find([](const Job& job) { return !job.ends_threads; });
}

/// Whether nobody but a thread that waits for something else would run the job.
bool Queue::is_orphan(const Job& job) const { return !thread_.joinable() && job.waiters == 0; }

/// Whether this thread, which waits for something behind `next`, is to run it.
bool Queue::may_run(const Job& next, bool wanted) const {
  if (next.ends_threads) return false;
  if (running_ == Running::nothing) return wanted || is_orphan(next);
  return is_suspended_here();  // nobody else can
}

/// Whether immediate work may run on a thread whose own work is suspended: not ahead of jobs that
/// could run before it, nor of those that the thread itself has submitted.
bool Queue::may_nest() const {
  if (!is_suspended_here()) return false;
  if (running_ == Running::immediate) return next_job() == nullptr;
  const auto is_own = [this](const Job& job) {
    return &job != running_job_ && !job.ends_threads && job.owner == runner_;
  };
  return pending_.find(is_own) == nullptr;
}

void Queue::add(const std::shared_ptr<Job>& job) {
  job->number = ++last_number_;
  job->owner = std::this_thread::get_id();
  pending_.push(job);
}

void Queue::submit(const std::shared_ptr<Job>& job) {
  const Lock lock(mutex_);
  add(job);
  start_thread();
  changed_.notify_all();
}

void Queue::run(const std::shared_ptr<Job>& job) {
  Lock lock(mutex_);
  require_nothing_suspended("commit_and_wait");
  add(job);
  await(lock, job);
}

void Queue::wait(const std::shared_ptr<Job>& job) {
  Lock lock(mutex_);
  if (!job->done) require_nothing_suspended("wait_until_completed");
  await(lock, job);
}

bool Queue::try_run(ImmediateWork& work) {
  switch (begin_immediate()) {
    case Start::later:
      return false;
    case Start::nested:
      run_nested(work);
      return true;
    case Start::now:
      break;
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

Queue::Start Queue::begin_immediate() {
  const Lock lock(mutex_);
  if (running_ != Running::nothing || !pending_.empty()) {
    return may_nest() ? Start::nested : Start::later;
  }
  running_ = Running::immediate;
  runner_ = std::this_thread::get_id();
  immediate_number_ = ++last_number_;
  return Start::now;
}

/// The slot stays with the work that is suspended.
void Queue::run_nested(ImmediateWork& work) {
  ThreadPool alone(0);
  const ScratchAside aside;
  const FpModeScope fp_mode;
  InterruptPoller poller;
  work.run(alone, poller);
}

void Queue::end_immediate() noexcept {
  const Lock lock(mutex_);
  running_ = Running::nothing;
  if (waiters_ > 0 || !pending_.empty()) changed_.notify_all();
}

void Queue::execute(Lock& lock, std::shared_ptr<Job> job, InterruptPoller* poller) {
  const Running outer = running_;  // immediate work that is suspended on this thread, or nothing
  running_ = Running::job;
  running_job_ = job.get();
  runner_ = std::this_thread::get_id();
  lock.unlock();
  if (outer == Running::nothing) {
    run_job(*job, pool_, poller);
  } else {
    run_job_nested(*job, poller);
  }
  job->dispatches.clear();  // without the lock: letting go of memory may run its owner's code
  lock.lock();
  running_ = outer;
  running_job_ = nullptr;
  finish(job);
}

void Queue::finish(const std::shared_ptr<Job>& job) {
  job->done = true;
  pending_.remove(*job);
  if (job->failed && failed_.size() < kMaxFailed) failed_.push_back(job);  // has room reserved
  // A lone caller that runs its own job wakes nobody.
  if (waiters_ > 0 || !pending_.empty()) changed_.notify_all();
}

void Queue::await(Lock& lock, const std::shared_ptr<Job>& job) {
  InterruptPoller poller;
  ++job->waiters;
  while (!job->done) {
    const std::shared_ptr<Job> next = next_job();
    const bool wanted = next == job;
    if (may_run(*next, wanted)) {
      execute(lock, next, wanted ? &poller : nullptr);
    } else if (pause(lock, poller)) {
      cancel(lock, job);
    }
  }
  --job->waiters;
  report(job);
}

/// Sleeps until something changes, for a moment at most; true where the check asks to stop.
bool Queue::pause(Lock& lock, InterruptPoller& poller) {
  ++waiters_;
  changed_.wait_for(lock, kInterruptPeriod);
  --waiters_;
  lock.unlock();  // the check may take another lock (Python's), or call the library
  const bool interrupted = poller.poll();
  lock.lock();
  return interrupted;
}

/// Returns when nothing of the job runs.
void Queue::cancel(Lock& lock, const std::shared_ptr<Job>& job) {
  if (job->done) return;
  job->cancelled.store(true);
  if (running_job_ == job.get()) {
    ++waiters_;
    changed_.wait(lock, [&job] { return job->done; });
    --waiters_;
    return;
  }
  job->fail(ErrorCode::interrupted, "the work was cancelled before it began");
  finish(job);
  lock.unlock();
  job->dispatches.clear();
  lock.lock();
}

void Queue::cancel_own(Lock& lock, std::uint64_t last) {
  const std::thread::id self = std::this_thread::get_id();
  const auto is_own = [&](const Job& job) {
    return job.owner == self && job.number <= last && !job.ends_threads;
  };
  for (std::shared_ptr<Job> job = pending_.find(is_own); job != nullptr;
       job = pending_.find(is_own)) {
    cancel(lock, job);
  }
  std::erase_if(failed_, [self](const std::shared_ptr<Job>& job) {
    return job->owner == self && job->cancelled.load();
  });
}

void Queue::report(const std::shared_ptr<Job>& job) {
  if (!job->failed) return;
  std::erase(failed_, job);
  throw Error(job->error_code, job->error);
}

/// Whether all that was begun up to number `last` is done, but for what is suspended here.
bool Queue::is_done(std::uint64_t last) const {
  const std::shared_ptr<Job> work = pending_.find([](const Job& job) { return !job.ends_threads; });
  if (work != nullptr && work->number <= last) return false;
  return running_ != Running::immediate || immediate_number_ > last || is_suspended_here();
}

void Queue::synchronize() {
  Lock lock(mutex_);
  require_nothing_suspended("synchronize");
  const std::thread::id self = std::this_thread::get_id();
  const std::uint64_t last = last_number_;
  InterruptPoller poller;
  while (!is_done(last) && !poller.interrupted()) {
    const std::shared_ptr<Job> next = next_job();
    const bool own = next != nullptr && next->owner == self;
    if (next != nullptr && may_run(*next, own)) {
      execute(lock, next, own ? &poller : nullptr);
    } else {
      pause(lock, poller);
    }
  }
  if (poller.interrupted()) {
    cancel_own(lock, last);
    fail(ErrorCode::interrupted, "synchronize: interrupted");
  }
  if (failed_.empty()) return;
  const std::shared_ptr<Job> first = failed_.front();
  failed_.clear();
  report(first);
}

void Queue::shutdown() noexcept {
  Lock lock(mutex_);
  if (is_suspended_here()) return;
  Job job;
  job.ends_threads = true;
  add({std::shared_ptr<Job>(), &job});  // owns nothing: this may not fail
  await_turn(lock, job);
  running_ = Running::immediate;
  runner_ = job.owner;
  immediate_number_ = job.number;
  ++thread_number_;
  std::thread thread = std::move(thread_);
  changed_.notify_all();
  lock.unlock();
  if (thread.joinable()) thread.join();
  pool_.stop();
  lock.lock();
  running_ = Running::nothing;
  pending_.remove(job);
  // What came in meanwhile may have counted on the thread.
  if (pending_.find([this](const Job& left) { return is_orphan(left); }) != nullptr) start_thread();
  changed_.notify_all();
}

void Queue::await_turn(Lock& lock, const Job& job) {
  while (running_ != Running::nothing || pending_.front().get() != &job) {
    const std::shared_ptr<Job> next = pending_.front();
    if (may_run(*next, false)) {
      execute(lock, next, nullptr);
      continue;
    }
    ++waiters_;
    changed_.wait(lock);
    --waiters_;
  }
}

void Queue::start_thread() noexcept {
  if (thread_.joinable()) return;
  try {
    thread_ = std::thread([this, number = thread_number_] { thread_loop(number); });
  } catch (...) {
    // Whoever waits runs the jobs; the next one that comes tries again.
  }
}

void Queue::thread_loop(std::uint64_t number) {
  Lock lock(mutex_);
  while (thread_number_ == number) {
    const std::shared_ptr<Job> next = pending_.front();
    if (next != nullptr && may_run(*next, true)) {
      execute(lock, next, nullptr);
      continue;
    }
    ++waiters_;
    changed_.wait(lock);
    --waiters_;
  }
}

}  // namespace metal_sdpa::cpu
