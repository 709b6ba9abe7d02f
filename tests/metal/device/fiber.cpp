// Fibers: mmapped stacks, a switch in assembly, and AddressSanitizer's hooks.
#include "fiber.hpp"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#ifdef SOFTWARE_METAL_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

extern "C" void software_metal_switch_stack(void** save, void* to);

#if defined(__x86_64__)
// Saves what the System V ABI asks a callee to keep; the floating-point modes are never changed.
asm(R"(
  .text
  .globl software_metal_switch_stack
  .hidden software_metal_switch_stack
  .type software_metal_switch_stack, @function
software_metal_switch_stack:
  .cfi_startproc
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
  .cfi_endproc
  .size software_metal_switch_stack, .-software_metal_switch_stack
)");
namespace {
constexpr std::size_t kSavedWords = 7;   // six registers and the return address
constexpr std::size_t kEntryWord = 6;
constexpr std::size_t kEntryMisalign = 8;  // at a function's first instruction
}  // namespace
#elif defined(__aarch64__)
asm(R"(
  .text
  .globl software_metal_switch_stack
  .hidden software_metal_switch_stack
  .type software_metal_switch_stack, %function
software_metal_switch_stack:
  .cfi_startproc
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .cfi_endproc
  .size software_metal_switch_stack, .-software_metal_switch_stack
)");
namespace {
constexpr std::size_t kSavedWords = 20;
constexpr std::size_t kEntryWord = 11;  // x30
constexpr std::size_t kEntryMisalign = 0;
}  // namespace
#else
#error "fibers are written for x86-64 and arm64 only"
#endif

namespace software_metal {
namespace {

constexpr std::size_t kStackBytes = 256 * 1024;
constexpr std::size_t kGuardBytes = 16 * 1024;  // a page on every machine
constexpr std::size_t kStacksPerBlock = 32;

#ifdef SOFTWARE_METAL_ASAN
// The flow that was left last: its stack is learnt when the next one starts.
FiberContext* left_last = nullptr;

void finish_switch(void* fake_stack) {
  const void* bottom = nullptr;
  std::size_t size = 0;
  __sanitizer_finish_switch_fiber(fake_stack, &bottom, &size);
  if (left_last != nullptr && left_last->stack_bottom == nullptr) {
    left_last->stack_bottom = const_cast<void*>(bottom);
    left_last->stack_size = size;
  }
}
#endif

}  // namespace

void switch_fiber(FiberContext& from, FiberContext& to) {
#ifdef SOFTWARE_METAL_ASAN
  void* fake_stack = nullptr;
  left_last = &from;
  __sanitizer_start_switch_fiber(&fake_stack, to.stack_bottom, to.stack_size);
  software_metal_switch_stack(&from.stack_pointer, to.stack_pointer);
  finish_switch(fake_stack);
#else
  software_metal_switch_stack(&from.stack_pointer, to.stack_pointer);
#endif
}

void leave_fiber(FiberContext& from, FiberContext& to) {
#ifdef SOFTWARE_METAL_ASAN
  left_last = &from;
  __sanitizer_start_switch_fiber(nullptr, to.stack_bottom, to.stack_size);
#endif
  software_metal_switch_stack(&from.stack_pointer, to.stack_pointer);
  std::abort();  // nothing resumes a fiber that has left
}

void fiber_started() {
#ifdef SOFTWARE_METAL_ASAN
  finish_switch(nullptr);
#endif
}

void prepare_fiber(FiberContext& context, void (*entry)(), std::size_t stagger) {
#ifdef SOFTWARE_METAL_ASAN
  // A fiber leaves without returning: the frames of the one before are still marked.
  __asan_unpoison_memory_region(context.stack_bottom, context.stack_size);
#endif
  // Tops differ by some lines, or the hot frames of all fibers would meet in one cache set.
  auto top = reinterpret_cast<std::uintptr_t>(context.stack_bottom) + context.stack_size;
  top -= (stagger % 16) * 320;
  top = (top & ~std::uintptr_t{15}) - kEntryMisalign;
  auto* words = reinterpret_cast<void**>(top) - kSavedWords;
  std::memset(static_cast<void*>(words), 0, kSavedWords * sizeof(void*));
  words[kEntryWord] = reinterpret_cast<void*>(entry);
  context.stack_pointer = words;
}

void abandon_fiber([[maybe_unused]] FiberContext& context) {
#ifdef SOFTWARE_METAL_ASAN
  __asan_unpoison_memory_region(context.stack_bottom, context.stack_size);
#endif
}

void StackPool::add_stack(FiberContext& context) {
  constexpr std::size_t kStride = kStackBytes + kGuardBytes;
  if (blocks_.empty() || used_in_last_ == kStacksPerBlock) {
    std::size_t bytes = kStride * kStacksPerBlock;
    void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
      std::fprintf(stderr, "software Metal: no memory for the stacks of a threadgroup\n");
      std::abort();
    }
    for (std::size_t i = 0; i < kStacksPerBlock; ++i) {
      mprotect(static_cast<char*>(base) + i * kStride, kGuardBytes, PROT_NONE);
    }
    blocks_.push_back({base, bytes});
    used_in_last_ = 0;
  }
  char* base = static_cast<char*>(blocks_.back().base) + used_in_last_++ * kStride;
  context.stack_bottom = base + kGuardBytes;
  context.stack_size = kStackBytes;
}

StackPool::~StackPool() {
  for (const Block& block : blocks_) munmap(block.base, block.bytes);
}

}  // namespace software_metal
