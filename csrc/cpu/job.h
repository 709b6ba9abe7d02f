// A command buffer on its way through the queue, and the line that it stands in.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/backend.h"

namespace metal_sdpa::cpu {

/// One command buffer, or a request to end the threads when its turn comes.
struct Job {
  std::vector<Dispatch> dispatches;
  int threads = 1;
  std::atomic<bool> cancelled{false};
  double run_time_s = 0;

  // What went wrong; written by whoever runs the job, before it is done.
  bool failed = false;
  ErrorCode error_code = ErrorCode::command_buffer;
  std::string error;

  // Guarded by the queue's mutex.
  std::shared_ptr<Job> next;  ///< in the line
  std::thread::id owner;      ///< who committed it
  std::uint64_t number = 0;   ///< in the order of commits
  int waiters = 0;            ///< threads that wait for it, who will run it where nobody does
  bool ends_threads = false;  ///< no work: run by its owner alone
  bool done = false;

  /// Keeps an error, at worst without its text.
  void fail(ErrorCode code, const char* text) noexcept {
    failed = true;
    error_code = code;
    try {
      error = text;
    } catch (...) {
      error.clear();
    }
  }
};

/// First come, first served. Jobs carry the links, so that nothing here can fail.
class JobLine {
 public:
  bool empty() const noexcept { return first_ == nullptr; }
  const std::shared_ptr<Job>& front() const noexcept { return first_; }

  void push(std::shared_ptr<Job> job) noexcept {
    std::shared_ptr<Job>& end = last_ == nullptr ? first_ : last_->next;
    last_ = job.get();
    end = std::move(job);
  }

  /// The first that `wanted` is true for; nullptr: none.
  template <typename Wanted>
  std::shared_ptr<Job> find(const Wanted& wanted) const {
    for (const std::shared_ptr<Job>* at = &first_; *at != nullptr; at = &(*at)->next) {
      if (wanted(**at)) return *at;
    }
    return nullptr;
  }

  /// From wherever it stands; `job` must be kept by the caller.
  void remove(const Job& job) noexcept {
    Job* before = nullptr;
    std::shared_ptr<Job>* at = &first_;
    for (; at->get() != &job; at = &(*at)->next) before = at->get();
    std::shared_ptr<Job> rest = std::move((*at)->next);
    if (last_ == &job) last_ = before;
    *at = std::move(rest);
  }

 private:
  std::shared_ptr<Job> first_;
  Job* last_ = nullptr;
};

}  // namespace metal_sdpa::cpu
