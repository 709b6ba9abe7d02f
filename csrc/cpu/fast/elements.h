// Elements in memory, as the kernels see them.
#pragma once

#include <cstdint>

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

struct F16 {
  std::uint16_t bits;
};
struct BF16 {
  std::uint16_t bits;
};

/// Copies n elements, where the machine has no masked load or store of their size.
template <typename T>
inline void copy_elements(const T* from, T* to, int n) {
  for (int i = 0; i < n; ++i) to[i] = from[i];
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
