// Element types of the kernels and their conversion to and from f32.
#pragma once

#include <cstdint>

#include "core/half.h"

namespace metal_sdpa::cpu {

struct F16 {
  std::uint16_t bits;
};
struct BF16 {
  std::uint16_t bits;
};

inline float load(const float* p) noexcept { return *p; }
inline float load(const F16* p) noexcept { return float_from_f16(p->bits); }
inline float load(const BF16* p) noexcept { return float_from_bf16(p->bits); }

/// Rounds once, to nearest even.
inline void store(float* p, float value) noexcept { *p = value; }
inline void store(F16* p, float value) noexcept { p->bits = f16_from_float(value); }
inline void store(BF16* p, float value) noexcept { p->bits = bf16_from_float(value); }

}  // namespace metal_sdpa::cpu
