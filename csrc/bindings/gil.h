// Letting go of the GIL, and getting it back or not when the interpreter is about to end.
#pragma once

#include <nanobind/nanobind.h>

namespace metal_sdpa::python {

/// Lets go of the GIL for its lifetime. Once `begin_exit` was called, threads other than the main
/// thread never come back: before Python 3.14 the interpreter would end them by unwinding the
/// stack, which no C++ frame that must not throw survives.
class GilRelease {
 public:
  GilRelease() noexcept;
  ~GilRelease();
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_;
};

/// From the atexit handler on the main thread, with the GIL: finishes all work and returns when no
/// other thread waits for the GIL inside this module any more.
void begin_exit();

/// Whether this is Python's main thread, the only one that runs signal handlers.
bool on_main_thread() noexcept;

/// Remembers the main thread; once, when the module is made.
void init_gil();

}  // namespace metal_sdpa::python
