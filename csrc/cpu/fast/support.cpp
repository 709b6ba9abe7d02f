// libm for the kernels, and what they ask of the processor.
#include "cpu/fast/support.h"

#include <cmath>
#include <limits>

#include "cpu/isa.h"

namespace metal_sdpa::cpu {
namespace {

constexpr float kLn2 = 0.693147180559945309f;

}  // namespace

int most_slots_to_load = is_intel() ? 0 : kMostSlotsToLoad;

float log_sum_exp(float reference, float sum) noexcept {
  if (sum == 0) return -std::numeric_limits<float>::infinity();
  return (reference + std::log2(sum)) * kLn2;
}

}  // namespace metal_sdpa::cpu
