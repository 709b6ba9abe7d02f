// What the kernels call that is compiled with nobody's wide instructions: memory and libm.
#pragma once

#include <cstddef>

namespace metal_sdpa::cpu {

/// At least `bytes` bytes at a 64-byte boundary, this thread's own until it asks again. The memory
/// stays with the thread: a kernel that runs again allocates nothing. Throws std::bad_alloc.
void* thread_scratch(std::size_t bytes);

/// Natural log-sum-exp of a state whose maximum is in log2 units; -inf for a sum of 0.
float log_sum_exp(float maximum_log2, float sum) noexcept;

}  // namespace metal_sdpa::cpu
