// What the kernels call that is compiled with nobody's wide instructions: memory and libm.
#pragma once

#include "cpu/thread_scratch.h"

namespace metal_sdpa::cpu {

/// Slots of a line of K or V times query rows, at most, whose arithmetic is over before prefetches
/// would have been answered.
constexpr int kMostSlotsToLoad = 64;

/// The same, at most, with which each block is loaded at once: kMostSlotsToLoad, but 0 on Intel's
/// processors, where prefetches wait for the queue that AMD's drop them from when it is full. 8
/// threads of a Xeon of the fourth generation, 1 query row a KV head: 0.59 ms for f32 and 0.33 for
/// f16 with loads, 0.40 and 0.22 with prefetches. Tests set it.
extern int most_slots_to_load;

/// Natural log-sum-exp of a sum in units of 2^reference; -inf for a sum of 0.
float log_sum_exp(float reference, float sum) noexcept;

}  // namespace metal_sdpa::cpu
