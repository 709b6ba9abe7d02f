// Work without the GIL that Ctrl-C can stop.
#pragma once

#include <nanobind/nanobind.h>

#include <utility>

namespace metal_sdpa::python {

/// Sets the Python error that a signal handler raised on this thread while the library worked.
/// False where there is none.
bool restore_pending_interrupt() noexcept;

/// Throws that error.
void throw_pending_interrupt();

/// Runs `work` without the GIL; an error of a signal handler wins over what the work throws.
template <typename Work>
void without_gil(Work&& work) {
  try {
    const nanobind::gil_scoped_release released;
    std::forward<Work>(work)();
  } catch (...) {
    throw_pending_interrupt();
    throw;
  }
  throw_pending_interrupt();
}

}  // namespace metal_sdpa::python
