// Memory and libm for the kernels.
#include "cpu/fast/support.h"

#include <cmath>
#include <limits>
#include <new>

#include "cpu/isa.h"

namespace metal_sdpa::cpu {
namespace {

constexpr float kLn2 = 0.693147180559945309f;
constexpr std::align_val_t kAlignment{64};

class Scratch {
 public:
  Scratch() = default;
  ~Scratch() { release(); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* at_least(std::size_t bytes) {
    if (bytes <= size_) return memory_;
    release();
    memory_ = ::operator new(bytes, kAlignment);
    size_ = bytes;
    return memory_;
  }

 private:
  void release() noexcept {
    ::operator delete(memory_, kAlignment);
    memory_ = nullptr;
    size_ = 0;
  }

  void* memory_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace

int most_slots_to_load = is_intel() ? 0 : kMostSlotsToLoad;

void* thread_scratch(std::size_t bytes) {
  thread_local Scratch scratch;
  return scratch.at_least(bytes);
}

float log_sum_exp(float reference, float sum) noexcept {
  if (sum == 0) return -std::numeric_limits<float>::infinity();
  return (reference + std::log2(sum)) * kLn2;
}

}  // namespace metal_sdpa::cpu
