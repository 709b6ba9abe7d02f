// Signals are looked for on the thread that waits; the exit of the interpreter joins all work.
#include "interrupts.h"

#include <memory>

#include "bindings.h"
#include "metal_sdpa/device.h"

namespace metal_sdpa::python {
namespace {

// What a signal handler raised inside the library, kept until the library has let go.
thread_local std::unique_ptr<nb::python_error> t_pending;

bool signal_raised() {
  if (!Py_IsInitialized()) return false;
  const PyGILState_STATE state = PyGILState_Ensure();
  const bool raised = PyErr_CheckSignals() != 0;
  if (raised) t_pending = std::make_unique<nb::python_error>();
  PyGILState_Release(state);
  return raised;
}

}  // namespace

bool restore_pending_interrupt() noexcept {
  if (t_pending == nullptr) return false;
  t_pending->restore();
  t_pending.reset();
  return true;
}

void throw_pending_interrupt() {
  if (t_pending == nullptr) return;
  const std::unique_ptr<nb::python_error> pending = std::move(t_pending);
  throw nb::python_error(std::move(*pending));
}

void bind_interrupts(nb::module_& module) {
  set_interrupt_check(signal_raised);
  const nb::object finish = nb::cpp_function([] {
    const nb::gil_scoped_release released;
    shutdown();
  });
  nb::module_::import_("atexit").attr("register")(finish);
  module.def(
      "shutdown",
      [] {
        const nb::gil_scoped_release released;
        shutdown();
      },
      "Waits for all devices and ends the threads of the library; a later call starts them anew.");
}

}  // namespace metal_sdpa::python
