// Memory that a kernel works in, one piece a thread.
#pragma once

#include <cstddef>

namespace metal_sdpa::cpu {

/// At least `bytes` bytes at a 64-byte boundary, this thread's own until it asks again. The memory
/// stays with the thread: a kernel that runs again allocates nothing. Throws std::bad_alloc.
void* thread_scratch(std::size_t bytes);

/// Lays this thread's memory aside for its lifetime: a kernel that is suspended on the thread finds
/// it as it was.
class ScratchAside {
 public:
  ScratchAside() noexcept;
  ~ScratchAside();
  ScratchAside(const ScratchAside&) = delete;
  ScratchAside& operator=(const ScratchAside&) = delete;

 private:
  void* memory_;
  std::size_t size_;
};

}  // namespace metal_sdpa::cpu
