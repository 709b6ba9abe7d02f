// Which command buffers the device still works on, and which ended in an error.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/backend.h"

namespace metal_sdpa {

/// What stays of a command buffer after its commit. Shared by the stream that made it, the list of
/// work in flight and the completion handler.
struct Submission {
  std::string label;
  // Until completion: everything that the dispatches use.
  std::vector<std::shared_ptr<Pipeline>> pipelines;  ///< one a dispatch, in order
  std::vector<std::shared_ptr<Storage>> storages;

  // Guarded by the mutex of InFlight.
  std::uint64_t number = 0;
  bool done = false;
  bool reported = false;  ///< somebody got the error
  std::string error;      ///< empty: completed without one
  double gpu_time_s = 0;
};

/// Safe from any thread.
class InFlight {
 public:
  void add(const std::shared_ptr<Submission>& submission);

  /// Called by the completion handler; lets go of what the dispatches used, then wakes waiters.
  void finish(const std::shared_ptr<Submission>& submission, std::string error,
              double gpu_time_s) noexcept;

  /// Returns when done; throws CommandBufferError with its text. Asks the interrupt check while it
  /// waits; the device cannot be stopped, so it waits on and then throws Error(interrupted).
  void wait(Submission& submission);

  /// Waits for everything added so far; throws the first error that nobody waited for.
  void wait_all();

  /// Waits for everything added so far without asking anybody, reports nothing.
  void drain() noexcept;

  double gpu_time_s(const Submission& submission) const;

 private:
  /// Whether nothing with a number up to `last` is running.
  bool none_up_to(std::uint64_t last) const;
  void throw_unreported();

  mutable std::mutex mutex_;
  std::condition_variable finished_;
  std::map<std::uint64_t, std::shared_ptr<Submission>> running_;
  std::vector<std::shared_ptr<Submission>> failed_;
  std::uint64_t next_number_ = 1;
};

}  // namespace metal_sdpa
