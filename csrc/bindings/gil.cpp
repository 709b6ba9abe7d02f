// GIL and exit.
#include "gil.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "metal_sdpa/device.h"

namespace metal_sdpa::python {
namespace {

std::atomic<unsigned long> g_main_thread{0};
std::atomic<bool> g_exiting{false};
std::atomic<int> g_released{0};  ///< threads between letting go of the GIL and having it back

// Threads that wait for the GIL get it at once while the main thread waits; this is for the rest.
constexpr std::chrono::seconds kLongestExit{2};

void park_if_exiting() noexcept {
  if (!g_exiting.load() || on_main_thread()) return;
  g_released.fetch_sub(1);
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

void wait_for_others() {
  const auto start = std::chrono::steady_clock::now();
  // This thread is one of those that let go.
  while (g_released.load() > 1 && std::chrono::steady_clock::now() - start < kLongestExit) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace

GilRelease::GilRelease() noexcept : state_(PyEval_SaveThread()) {
  g_released.fetch_add(1);
  park_if_exiting();
}

GilRelease::~GilRelease() {
  park_if_exiting();
  PyEval_RestoreThread(state_);
  g_released.fetch_sub(1);
}

void begin_exit() {
  g_main_thread.store(PyThread_get_thread_ident());
  g_exiting.store(true);
  const GilRelease released;
  shutdown();
  wait_for_others();
  shutdown();  // ends the threads that they started meanwhile
}

bool on_main_thread() noexcept { return PyThread_get_thread_ident() == g_main_thread.load(); }

void init_gil() {
  namespace nb = nanobind;
  const nb::object main = nb::module_::import_("threading").attr("main_thread")();
  g_main_thread.store(nb::cast<unsigned long>(main.attr("ident")));
  // The thread that forks is the main thread of the child, and the only one.
  pthread_atfork(nullptr, nullptr, [] {
    g_main_thread.store(PyThread_get_thread_ident());
    g_released.store(0);
  });
}

}  // namespace metal_sdpa::python
