// A thread's memory.
#include "cpu/thread_scratch.h"

#include <new>
#include <utility>

namespace metal_sdpa::cpu {
namespace {

constexpr std::align_val_t kAlignment{64};

struct Scratch {
  void* memory = nullptr;
  std::size_t size = 0;

  Scratch() = default;
  ~Scratch() { release(); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* at_least(std::size_t bytes) {
    if (bytes <= size) return memory;
    release();
    memory = ::operator new(bytes, kAlignment);
    size = bytes;
    return memory;
  }

  void release() noexcept {
    ::operator delete(memory, kAlignment);
    memory = nullptr;
    size = 0;
  }
};

Scratch& own_scratch() noexcept {
  thread_local Scratch scratch;
  return scratch;
}

}  // namespace

void* thread_scratch(std::size_t bytes) { return own_scratch().at_least(bytes); }

ScratchAside::ScratchAside() noexcept
    : memory_(std::exchange(own_scratch().memory, nullptr)),
      size_(std::exchange(own_scratch().size, 0)) {}

ScratchAside::~ScratchAside() {
  Scratch& own = own_scratch();
  own.release();
  own.memory = memory_;
  own.size = size_;
}

}  // namespace metal_sdpa::cpu
