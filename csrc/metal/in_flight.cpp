// Waiting for command buffers.
#include "metal/in_flight.h"

#include <algorithm>
#include <utility>

#include "core/interrupt.h"
#include "core/text.h"

namespace metal_sdpa {
namespace {

// Errors that nobody asks for are kept up to here; what comes later has the same cause.
constexpr std::size_t kMaxKeptFailures = 64;

/// Waits until `done`, asking the interrupt check between; true where it asked to stop.
template <typename Done>
bool wait_polling(std::unique_lock<std::mutex>& lock, std::condition_variable& finished,
                  const Done& done) {
  InterruptPoller poller;
  bool interrupted = false;
  while (!finished.wait_for(lock, kInterruptPeriod, done)) {
    lock.unlock();  // the check may run code of the caller
    interrupted = poller.poll();
    lock.lock();
  }
  return interrupted;
}

}  // namespace

void InFlight::add(const std::shared_ptr<Submission>& submission) {
  const std::lock_guard<std::mutex> lock(mutex_);
  submission->number = next_number_++;
  running_.emplace(submission->number, submission);
}

void InFlight::finish(const std::shared_ptr<Submission>& submission, std::string error,
                      double gpu_time_s) noexcept {
  submission->storages.clear();  // before anybody is woken, and outside of the lock
  submission->pipelines.clear();
  const std::lock_guard<std::mutex> lock(mutex_);
  submission->done = true;
  submission->error = std::move(error);
  submission->gpu_time_s = gpu_time_s;
  running_.erase(submission->number);
  if (!submission->error.empty() && failed_.size() < kMaxKeptFailures) {
    failed_.push_back(submission);
  }
  finished_.notify_all();
}

void InFlight::wait(Submission& submission) {
  std::unique_lock<std::mutex> lock(mutex_);
  const bool interrupted = wait_polling(lock, finished_, [&submission] { return submission.done; });
  if (interrupted) {
    fail(ErrorCode::interrupted, "wait_until_completed: ", submission.label, ": interrupted");
  }
  if (submission.error.empty()) return;
  submission.reported = true;
  std::erase_if(failed_, [](const auto& failure) { return failure->reported; });
  fail(ErrorCode::command_buffer, submission.error);
}

void InFlight::wait_all() {
  std::unique_lock<std::mutex> lock(mutex_);
  const std::uint64_t last = next_number_ - 1;
  const bool interrupted = wait_polling(lock, finished_, [this, last] { return none_up_to(last); });
  if (interrupted) fail(ErrorCode::interrupted, "synchronize: interrupted");
  throw_unreported();
}

void InFlight::throw_unreported() {
  if (failed_.empty()) return;
  const std::string first = failed_.front()->error;
  const std::size_t others = failed_.size() - 1;
  for (const auto& failure : failed_) failure->reported = true;
  failed_.clear();
  if (others == 0) fail(ErrorCode::command_buffer, first);
  fail(ErrorCode::command_buffer, first, " (and ", others, " more command buffers failed)");
}

void InFlight::drain() noexcept {
  std::unique_lock<std::mutex> lock(mutex_);
  const std::uint64_t last = next_number_ - 1;
  finished_.wait(lock, [this, last] { return none_up_to(last); });
}

bool InFlight::none_up_to(std::uint64_t last) const {
  return running_.empty() || running_.begin()->first > last;
}

double InFlight::gpu_time_s(const Submission& submission) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return submission.gpu_time_s;
}

}  // namespace metal_sdpa
