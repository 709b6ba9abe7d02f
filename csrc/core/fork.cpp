// Fork handlers.
#include "core/fork.h"

#include <pthread.h>

#include <atomic>

#include "metal_sdpa/inline_vector.h"

namespace metal_sdpa {
namespace {

struct ForkState {
  std::atomic<std::uint64_t> generation{0};
  std::mutex mutex;
  InlineVector<void (*)(), 8> child_handlers;
};

ForkState& fork_state() noexcept;

void before_fork() { fork_state().mutex.lock(); }
void after_fork_in_parent() { fork_state().mutex.unlock(); }
void after_fork_in_child() {
  ForkState& state = fork_state();
  state.generation.fetch_add(1);
  state.mutex.unlock();
  for (void (*handler)() : state.child_handlers) handler();
}

ForkState* make_fork_state() {
  auto* state = new ForkState;  // lives as long as the process: handlers cannot be removed
  pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  return state;
}

ForkState& fork_state() noexcept {
  static ForkState* const state = make_fork_state();
  return *state;
}

}  // namespace

std::uint64_t fork_generation() noexcept { return fork_state().generation.load(); }

std::mutex& process_mutex() noexcept { return fork_state().mutex; }

void at_fork_child(void (*handler)()) {
  const std::lock_guard<std::mutex> lock(process_mutex());
  fork_state().child_handlers.push_back(handler);
}

}  // namespace metal_sdpa
