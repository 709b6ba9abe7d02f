// What fork() means here: threads are gone in the child, so encoders and graphs from before raise.
#pragma once

#include <cstdint>
#include <mutex>

namespace metal_sdpa {

/// Starts at 0, one more in every child. Reading it also installs the fork handlers.
std::uint64_t fork_generation() noexcept;

/// Guards short critical sections of process-wide tables (registries, scratch, devices). Held
/// across fork(), so that a child never inherits it locked or a table half written.
std::mutex& process_mutex() noexcept;

/// Called in the child, single-threaded, after every fork. At most 8 handlers, kept for good.
void at_fork_child(void (*handler)());

}  // namespace metal_sdpa
