// The pool: a late worker never delays a join, because it only enters while work is left.
#include "cpu/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "cpu/fp_mode.h"

namespace metal_sdpa::cpu {
namespace {

constexpr std::uint64_t kOpen = std::uint64_t{1} << 31;
constexpr std::uint64_t kCount = kOpen - 1;
constexpr std::uint64_t kEpochOne = std::uint64_t{1} << 32;

// Workers spin this long after a fork-join, so that the next step of a plan finds them awake; a
// sleeping one costs a wake-up of some 50 us.
constexpr std::chrono::microseconds kSpin{30};

// In pools of up to so many workers each is told where to wake, at some 2 us each. Larger ones pay
// that only for those who would share a processor.
constexpr int kPlaced = 8;

// How long a system that gave no thread is left in peace.
constexpr std::chrono::seconds kRetry{1};

// A thread takes one of so many equal shares of what is left for it.
constexpr std::uint64_t kSharesPerThread = 3;

std::uint64_t epoch_of(std::uint64_t state) { return state / kEpochOne; }

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

class WorkerStop final : public StopToken {
 public:
  explicit WorkerStop(const std::atomic<bool>& cancelled) : cancelled_(cancelled) {}
  bool stop_requested() noexcept override { return cancelled_.load(std::memory_order_relaxed); }

 private:
  const std::atomic<bool>& cancelled_;
};

class CallerStop final : public StopToken {
 public:
  CallerStop(std::atomic<bool>& cancelled, InterruptPoller* poller)
      : cancelled_(cancelled), poller_(poller) {}
  bool stop_requested() noexcept override {
    if (poller_ != nullptr && poller_->poll()) cancelled_.store(true);
    return cancelled_.load(std::memory_order_relaxed);
  }

 private:
  std::atomic<bool>& cancelled_;
  InterruptPoller* poller_;
};

}  // namespace

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::run(int n_threads, const ParallelWork& work, InterruptPoller* poller) {
  work_ = work;
  next_.store(0);
  const int helpers = n_threads > 1 ? start_workers(n_threads - 1) : 0;
  wanted_.store(helpers, std::memory_order_relaxed);
  CallerStop stop(*work.cancelled, poller);
  if (helpers == 0) {
    take_chunks(stop);
  } else {
    state_.store((epoch_of(state_.load()) + 1) * kEpochOne | kOpen);
    if (sleepers_.load() > 0) wake_workers(helpers);
    take_chunks(stop);
    wait_for_workers(poller);
  }
  if (exception_ != nullptr) std::rethrow_exception(std::exchange(exception_, nullptr));
}

void ThreadPool::wait_for_workers(InterruptPoller* poller) {
  std::uint64_t state = state_.fetch_and(~kOpen);
  for (int spins = 0; (state & kCount) != 0; ++spins) {
    if (spins < 2000) {
      pause_briefly();
    } else {
      std::this_thread::yield();
      if (poller != nullptr && poller->poll()) work_.cancelled->store(true);
    }
    state = state_.load();
  }
}

void ThreadPool::take_chunks(StopToken& stop) {
  try {
    WorkRange chunk;
    while (!stop.stop_requested() && take_chunk(chunk)) work_.kernel(*work_.launch, chunk, stop);
  } catch (...) {
    keep_exception();
  }
}

/// Large chunks first, since items that follow each other read memory that does; small ones last,
/// so that all threads end together.
bool ThreadPool::take_chunk(WorkRange& chunk) {
  const auto threads = static_cast<std::uint64_t>(wanted_.load(std::memory_order_relaxed) + 1);
  const std::uint64_t shares = work_.dealt ? work_.total : kSharesPerThread * threads;
  std::uint64_t begin = next_.load();
  std::uint64_t end = 0;
  do {
    if (begin >= work_.total) return false;
    end = begin + std::max<std::uint64_t>(1, (work_.total - begin) / shares);
  } while (!next_.compare_exchange_weak(begin, end));
  chunk = {begin, end};
  return true;
}

void ThreadPool::keep_exception() noexcept {
  work_.cancelled->store(true);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (exception_ == nullptr) exception_ = std::current_exception();
}

/// How many of `count` workers there are. After a failure it is asked for more only later: a call
/// that goes without them shall not pay for asking.
int ThreadPool::start_workers(int count) noexcept {
  const int wanted = std::min(count, most_workers_);
  while (static_cast<int>(workers_.size()) < wanted && start_worker()) {
  }
  return std::min(wanted, static_cast<int>(workers_.size()));
}

bool ThreadPool::start_worker() noexcept {
  const auto now = std::chrono::steady_clock::now();
  if (now < retry_after_) return false;
  try {
    Worker& worker = workers_.emplace_back();
    worker.index = static_cast<int>(workers_.size()) - 1;
    worker.thread = std::thread([this, &worker] { worker_loop(worker); });
    return true;
  } catch (...) {
    if (!workers_.empty() && !workers_.back().thread.joinable()) workers_.pop_back();
    retry_after_ = now + kRetry;
    return false;
  }
}

/// Wakes all; the first `count` of them on processors of their own, as far as there are any.
void ThreadPool::wake_workers(int count) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ProcessorSet taken;
  taken.add(current_processor());
  for (Worker& worker : workers_) {
    worker.beside = worker.index < count && !taken.add(worker.place.processor());
  }
  for (Worker& worker : workers_) {
    if (worker.index >= count || worker.place.processor() < 0) continue;
    if (worker.beside || count <= kPlaced) worker.place.keep_off(taken, !worker.beside);
  }
  wake_.notify_all();
}

void ThreadPool::worker_loop(Worker& self) {
  std::uint64_t epoch = 0;
  for (;;) {
    epoch = wait_for_work(self, epoch);
    if (stopping_.load()) return;
    {
      const FpModeScope fp_mode;
      WorkerStop stop(*work_.cancelled);
      take_chunks(stop);
    }
    leave();
  }
}

/// Counts the worker in where a fork-join other than `seen_epoch` is open and wants this worker.
bool ThreadPool::enter(std::uint64_t& epoch, std::uint64_t seen_epoch, int index) {
  std::uint64_t state = state_.load();
  while ((state & kOpen) != 0 && epoch_of(state) != seen_epoch && index < wanted_.load()) {
    if (state_.compare_exchange_weak(state, state + 1)) {
      epoch = epoch_of(state);
      return true;
    }
  }
  return false;
}

void ThreadPool::leave() { state_.fetch_sub(1); }

std::uint64_t ThreadPool::wait_for_work(Worker& self, std::uint64_t seen_epoch) {
  std::uint64_t epoch = seen_epoch;
  const auto spin_end = std::chrono::steady_clock::now() + kSpin;
  while (std::chrono::steady_clock::now() < spin_end) {
    for (int i = 0; i < 16; ++i) {
      if (stopping_.load() || enter(epoch, seen_epoch, self.index)) return epoch;
      pause_briefly();
    }
  }
  {
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    while (!stopping_.load() && !enter(epoch, seen_epoch, self.index)) {
      self.place.note();
      wake_.wait(lock);
    }
    sleepers_.fetch_sub(1);
    self.place.forget();
  }
  self.place.settle();
  return epoch;
}

void ThreadPool::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_.store(true);
  }
  wake_.notify_all();
  for (Worker& worker : workers_) worker.thread.join();
  workers_.clear();
  retry_after_ = {};
  stopping_.store(false);
}

}  // namespace metal_sdpa::cpu
