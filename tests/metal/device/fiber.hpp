// Stacks to run on and the switch between them. AddressSanitizer is told of each switch.
#pragma once

#include <cstddef>
#include <vector>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SOFTWARE_METAL_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define SOFTWARE_METAL_ASAN 1
#endif

namespace software_metal {

/// A flow of control on a stack of its own, or (with no stack) the one that started the others.
struct FiberContext {
  void* stack_pointer = nullptr;
  void* stack_bottom = nullptr;
  std::size_t stack_size = 0;
};

/// Suspends `from` and resumes `to`; returns when something switches back to `from`.
void switch_fiber(FiberContext& from, FiberContext& to);

/// Leaves `from` for good.
[[noreturn]] void leave_fiber(FiberContext& from, FiberContext& to);

/// Makes `context` start in `entry`, on its own stack from the top. `entry` never returns; its
/// first act is a call of `fiber_started`.
void prepare_fiber(FiberContext& context, void (*entry)(), std::size_t stagger);
void fiber_started();

/// Forgets what a fiber left on its stack when it is never resumed.
void abandon_fiber(FiberContext& context);

/// Stacks with a guard page below each; they are kept until the end of the pool.
class StackPool {
 public:
  StackPool() = default;
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;
  ~StackPool();
  /// Gives `context` a new stack.
  void add_stack(FiberContext& context);

 private:
  struct Block {
    void* base;
    std::size_t bytes;
  };
  std::vector<Block> blocks_;
  std::size_t used_in_last_ = 0;
};

}  // namespace software_metal
