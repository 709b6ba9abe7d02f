// Asks the caller's interrupt check, at most every 10 ms.
#pragma once

#include <chrono>

#include "metal_sdpa/device.h"

namespace metal_sdpa {

/// How long a wait may last before it asks again; a fifth of the promised 50 ms.
inline constexpr std::chrono::milliseconds kInterruptPeriod{10};

/// The check that set_interrupt_check installed; may be null.
InterruptCheck interrupt_check() noexcept;

/// One per computation or wait, used by the thread that waits for the result.
class InterruptPoller {
 public:
  /// True once the check asked to stop; stays true.
  bool poll() noexcept {
    if (interrupted_) return true;
    // Short work, which asks when it begins and when it ends, never looks at the clock.
    if (++questions_ <= kFreeQuestions) return false;
    const auto now = std::chrono::steady_clock::now();
    if (questions_ == kFreeQuestions + 1) last_ = now;
    if (now - last_ < kInterruptPeriod) return false;
    last_ = now;
    const InterruptCheck check = interrupt_check();
    interrupted_ = check != nullptr && check();
    return interrupted_;
  }

  /// Whether it did, without asking.
  bool interrupted() const noexcept { return interrupted_; }

 private:
  static constexpr unsigned kFreeQuestions = 2;

  std::chrono::steady_clock::time_point last_;
  unsigned questions_ = 0;
  bool interrupted_ = false;
};

}  // namespace metal_sdpa
