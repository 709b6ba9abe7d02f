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
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < kInterruptPeriod) return false;
    last_ = now;
    const InterruptCheck check = interrupt_check();
    interrupted_ = check != nullptr && check();
    return interrupted_;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
  bool interrupted_ = false;
};

}  // namespace metal_sdpa
