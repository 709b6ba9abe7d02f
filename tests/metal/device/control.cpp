// The control interface: seeds, validation mode, faults, counts, and the report at exit.
#include "control.hpp"

#include <climits>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <vector>

#include "../objc/runtime.hpp"
#include "executor.hpp"
#include "report.hpp"

namespace software_metal {
namespace {

constexpr int kCounters = 8;

struct Faults {
  int allocation = -1;
  int command_buffer = -1;
  CommandBufferFault command_buffer_fault{};
  std::optional<std::string> library;
  std::optional<std::string> pipeline;
  std::string hidden_function;
  bool device_absent = false;
  unsigned delay_us = 0;
};

// SOFTWARE_METAL_SEED is a number or "random", which is printed so that a failed run can be had
// again; without it every run has seed 1.
std::uint64_t seed_of_environment() {
  const char* text = std::getenv("SOFTWARE_METAL_SEED");
  if (text == nullptr) return 1;
  if (std::strcmp(text, "random") != 0) return std::strtoull(text, nullptr, 0);
  const std::uint64_t seed = std::random_device{}();
  std::fprintf(stderr, "software Metal: SOFTWARE_METAL_SEED=%llu\n",
               static_cast<unsigned long long>(seed));
  return seed;
}

struct Control {
  std::mutex mutex;
  std::atomic<std::uint64_t> seed{1};
  std::atomic<std::uint64_t> streams{0};
  bool record = false;
  std::vector<std::string> violations;
  Faults faults;
  std::atomic<std::uint64_t> counters[kCounters] = {};

  Control() { read_environment(); }
  void read_environment() {
    static const std::uint64_t initial_seed = seed_of_environment();
    seed = initial_seed;
    streams = 0;
    const char* mode = std::getenv("SOFTWARE_METAL_VALIDATION");
    record = mode != nullptr && std::strcmp(mode, "record") == 0;
  }
};

Control& control() {
  static Control& instance = *new Control;
  return instance;
}

thread_local std::uint64_t thread_violations = 0;

std::string format_list(const char* text, va_list arguments) {
  va_list again;
  va_copy(again, arguments);
  int length = std::vsnprintf(nullptr, 0, text, again);
  va_end(again);
  std::string out(static_cast<std::size_t>(length), '\0');
  std::vsnprintf(out.data(), out.size() + 1, text, arguments);
  return out;
}

// Counts down to the fault; true when it strikes.
bool strike(int& remaining) {
  if (remaining < 0) return false;
  return remaining-- == 0;
}

template <class T>
std::optional<T> take(std::optional<T>& slot) {
  std::lock_guard<std::mutex> lock(control().mutex);
  return std::exchange(slot, std::nullopt);
}

std::string live_report() {
  std::string report;
  for (const Class* cls : Registry::instance().classes()) {
    long live = cls->live.load();
    if (live == 0) continue;
    report += format("%s%s %ld", report.empty() ? "" : ", ", cls->name().c_str(), live);
  }
  return report;
}

// Number of objects of a class that the program keeps until it ends on purpose, by a list such as
// "MTLDevice 1, MTLFunction *".
long allowed_at_exit(const std::string& allowed, const std::string& class_name) {
  std::size_t at = (", " + allowed).find(", " + class_name + " ");
  if (at == std::string::npos) return 0;
  const char* number = allowed.c_str() + at + class_name.size() + 1;
  return *number == '*' ? LONG_MAX : std::strtol(number, nullptr, 10);
}

// Classes with more objects than `allowed`.
std::string leak_report(const std::string& allowed) {
  std::string report;
  for (const Class* cls : Registry::instance().classes()) {
    long live = cls->live.load();
    if (live <= allowed_at_exit(allowed, cls->name())) continue;
    report += format("%s%s %ld", report.empty() ? "" : ", ", cls->name().c_str(), live);
  }
  return report;
}

// SOFTWARE_METAL_LEAKS at exit: "fatal" ends with status 86, "off" is silent, else a report.
// SOFTWARE_METAL_KEPT says what is no leak; how it was built says it where that is not set.
void check_leaks_at_exit() {
  const char* mode = std::getenv("SOFTWARE_METAL_LEAKS");
  if (mode != nullptr && std::strcmp(mode, "off") == 0) return;
  const char* kept = std::getenv("SOFTWARE_METAL_KEPT");
  std::string report = leak_report(kept != nullptr ? kept : SOFTWARE_METAL_DEFAULT_KEPT);
  if (report.empty()) return;
  std::fprintf(stderr, "software Metal: objects alive at exit: %s\n", report.c_str());
  std::fflush(stderr);
  if (mode != nullptr && std::strcmp(mode, "fatal") == 0) std::_Exit(86);
}

// Runs when the binary that holds the device is unloaded or the process ends.
struct AtExit {
  ~AtExit() {
    shut_down_executor();
    check_leaks_at_exit();
  }
} at_exit;

}  // namespace

std::string format(const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  std::string out = format_list(text, arguments);
  va_end(arguments);
  return out;
}

void violation(const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  std::string message = format_list(text, arguments);
  va_end(arguments);
  ++thread_violations;
  Control& state = control();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (state.record) {
    state.violations.push_back(message);
    return;
  }
  std::fprintf(stderr, "software Metal: validation failed: %s (seed %llu)\n", message.c_str(),
               static_cast<unsigned long long>(state.seed.load()));
  std::fflush(stderr);
  std::abort();
}

Random next_random() {
  std::uint64_t stream = control().streams.fetch_add(1);
  return Random(control().seed.load() * 0x9e3779b97f4a7c15ull + stream);
}

std::uint64_t violations_on_this_thread() { return thread_violations; }

void count(int what, std::uint64_t n) { control().counters[what] += n; }

bool take_allocation_fault() {
  std::lock_guard<std::mutex> lock(control().mutex);
  return strike(control().faults.allocation);
}
std::optional<std::string> take_library_fault() { return take(control().faults.library); }
std::optional<std::string> take_pipeline_fault() { return take(control().faults.pipeline); }

std::optional<CommandBufferFault> take_command_buffer_fault() {
  std::lock_guard<std::mutex> lock(control().mutex);
  if (!strike(control().faults.command_buffer)) return std::nullopt;
  return control().faults.command_buffer_fault;
}

bool is_function_hidden(const std::string& name) {
  std::lock_guard<std::mutex> lock(control().mutex);
  return !name.empty() && control().faults.hidden_function == name;
}

bool is_device_absent() {
  std::lock_guard<std::mutex> lock(control().mutex);
  return control().faults.device_absent;
}

unsigned command_buffer_delay_us() {
  std::lock_guard<std::mutex> lock(control().mutex);
  return control().faults.delay_us;
}

}  // namespace software_metal

using software_metal::control;

extern "C" {

SOFTWARE_METAL_EXPORT void software_metal_set_seed(uint64_t seed) {
  control().seed = seed;
  control().streams = 0;
}
SOFTWARE_METAL_EXPORT uint64_t software_metal_seed(void) { return control().seed; }

SOFTWARE_METAL_EXPORT void software_metal_set_validation(int mode) {
  std::lock_guard<std::mutex> lock(control().mutex);
  control().record = mode == SOFTWARE_METAL_RECORD;
}

SOFTWARE_METAL_EXPORT int software_metal_violation_count(void) {
  std::lock_guard<std::mutex> lock(control().mutex);
  return static_cast<int>(control().violations.size());
}

SOFTWARE_METAL_EXPORT const char* software_metal_violation(int index) {
  thread_local std::string text;
  std::lock_guard<std::mutex> lock(control().mutex);
  const auto& all = control().violations;
  if (index < 0 || static_cast<std::size_t>(index) >= all.size()) return nullptr;
  text = all[static_cast<std::size_t>(index)];
  return text.c_str();
}

SOFTWARE_METAL_EXPORT void software_metal_clear_violations(void) {
  std::lock_guard<std::mutex> lock(control().mutex);
  control().violations.clear();
}

SOFTWARE_METAL_EXPORT void software_metal_fail_allocation(int n) {
  std::lock_guard<std::mutex> lock(control().mutex);
  control().faults.allocation = n;
}

SOFTWARE_METAL_EXPORT void software_metal_fail_library(const char* message) {
  std::lock_guard<std::mutex> lock(control().mutex);
  control().faults.library = message;
}

SOFTWARE_METAL_EXPORT void software_metal_hide_function(const char* name) {
  std::lock_guard<std::mutex> lock(control().mutex);
  control().faults.hidden_function = name != nullptr ? name : "";
}

SOFTWARE_METAL_EXPORT void software_metal_fail_pipeline(const char* message) {
  std::lock_guard<std::mutex> lock(control().mutex);
  control().faults.pipeline = message;
}

SOFTWARE_METAL_EXPORT void software_metal_fail_command_buffer(int n, long code, const char* text) {
  std::lock_guard<std::mutex> lock(control().mutex);
  control().faults.command_buffer = n;
  control().faults.command_buffer_fault = {code, text};
}

SOFTWARE_METAL_EXPORT void software_metal_set_device_absent(int absent) {
  std::lock_guard<std::mutex> lock(control().mutex);
  control().faults.device_absent = absent != 0;
}

SOFTWARE_METAL_EXPORT void software_metal_set_delay_us(unsigned microseconds) {
  std::lock_guard<std::mutex> lock(control().mutex);
  control().faults.delay_us = microseconds;
}

SOFTWARE_METAL_EXPORT void software_metal_clear_faults(void) {
  std::lock_guard<std::mutex> lock(control().mutex);
  control().faults = {};
}

SOFTWARE_METAL_EXPORT long software_metal_live_objects(const char* class_name) {
  long live = 0;
  for (const auto* cls : software_metal::Registry::instance().classes()) {
    if (class_name == nullptr || cls->name() == class_name) live += cls->live.load();
  }
  return live;
}

SOFTWARE_METAL_EXPORT const char* software_metal_live_report(void) {
  thread_local std::string text;
  text = software_metal::live_report();
  return text.c_str();
}

SOFTWARE_METAL_EXPORT uint64_t software_metal_count(int what) {
  return what >= 0 && what < software_metal::kCounters ? control().counters[what].load() : 0;
}

SOFTWARE_METAL_EXPORT void software_metal_reset_counts(void) {
  for (auto& counter : control().counters) counter = 0;
}

SOFTWARE_METAL_EXPORT void software_metal_wait(void) { software_metal::wait_for_executor(); }

SOFTWARE_METAL_EXPORT void software_metal_reset(void) {
  software_metal::wait_for_executor();
  software_metal_clear_faults();
  software_metal_clear_violations();
  software_metal_reset_counts();
  std::lock_guard<std::mutex> lock(control().mutex);
  control().read_environment();
}

}  // extern "C"
