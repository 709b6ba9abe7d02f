// Signals are looked for on the thread that waits; the exit of the interpreter joins all work.
#include "interrupts.h"

#include <memory>

#include "bindings.h"
#include "core/text.h"
#include "metal_sdpa/device.h"

namespace metal_sdpa::python {
namespace {

// What a signal handler raised inside the library, kept until the library has let go.
thread_local std::unique_ptr<nb::python_error> t_pending;

// Signal handlers that run inside calls of this thread.
thread_local int t_handlers = 0;

bool signal_raised() {
  if (!on_main_thread() || !Py_IsInitialized()) return false;
  const PyGILState_STATE state = PyGILState_Ensure();
  ++t_handlers;
  const bool raised = PyErr_CheckSignals() != 0;
  --t_handlers;
  if (raised) t_pending = std::make_unique<nb::python_error>();
  PyGILState_Release(state);
  return raised;
}

void shutdown_devices() {
  if (t_handlers > 0) {
    fail_argument("shutdown: called by a signal handler in the middle of another call, whose work ",
                  "the threads have; raise from the handler and call it then");
  }
  const GilRelease released;
  shutdown();
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
  init_gil();
  set_interrupt_check(signal_raised);
  nb::module_::import_("atexit").attr("register")(nb::cpp_function(begin_exit));
  module.def("shutdown", &shutdown_devices,
             "Waits for what was committed to all devices and ends the threads of the library; a "
             "later call\nstarts them anew. InvalidArgument from a signal handler that runs in the "
             "middle of another call.");
}

}  // namespace metal_sdpa::python
