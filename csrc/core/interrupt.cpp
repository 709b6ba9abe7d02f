// The process-wide interrupt check.
#include "core/interrupt.h"

#include <atomic>

namespace metal_sdpa {
namespace {
std::atomic<InterruptCheck> g_interrupt_check{nullptr};
}

InterruptCheck interrupt_check() noexcept { return g_interrupt_check.load(); }

void set_interrupt_check(InterruptCheck check) noexcept { g_interrupt_check.store(check); }

}  // namespace metal_sdpa
