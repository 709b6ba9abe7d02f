// Tile registers of AMX-BF16: eight matrices of 16 rows of 64 bytes. A product takes 16 rows of 16
// bf16 pairs, times 16 rows of pairs of 16 columns, in which row k holds elements 2k and 2k + 1 of
// each column. Included only by *_kernel.cpp.
//
//   AmxScope<kUsed>              the registers may be used while it lives; false: nothing. No calls
//                                but of the kernel's own functions meanwhile
//   amx_zero<t>()                register t = 0
//   amx_load<t>(p, step)         its rows start at p + i * step f32 slots
//   amx_store<t>(p, step)
//   amx_dot<c, a, b>()           c += a b. The sums over the even and the odd elements of the pairs
//                                are made in order from 0, then added, then added to c.
#pragma once

#include "cpu/fast/simd.h"
#include "shaders/sdpa_args.h"

#if defined(__AMX_BF16__)
#define METAL_SDPA_HAS_AMX
#elif defined(METAL_SDPA_EMULATE_AMX)
#define METAL_SDPA_HAS_AMX
#endif

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// Rows of a register, and slots of one of its rows.
inline constexpr int kAmxRows = 16;

#if defined(METAL_SDPA_HAS_AMX)
inline constexpr bool kHasAmx = true;
#else
inline constexpr bool kHasAmx = false;
#endif

template <bool kUsed>
class AmxScope {};

#if defined(__AMX_BF16__)

// Nothing here by the intrinsics: g++ 12's do not tell the compiler what memory they read.

template <>
class AmxScope<true> {
 public:
  AmxScope() {
    const Config config;
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
  }
  ~AmxScope() { __asm__ volatile("tilerelease"); }
  AmxScope(const AmxScope&) = delete;
  AmxScope& operator=(const AmxScope&) = delete;

 private:
  struct Config {  // as LDTILECFG reads it
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static_assert(sizeof(Config) == 64, "palette 1 has 64 bytes");
};

template <int kTile>
inline void amx_zero() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
template <int kTile>
inline void amx_load(const float* p, sdpa_i64 step) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                   :
                   : "r"(p), "r"(step * 4), "i"(kTile)
                   : "memory");
}
template <int kTile>
inline void amx_store(float* p, sdpa_i64 step) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                   :
                   : "r"(p), "r"(step * 4), "i"(kTile)
                   : "memory");
}
template <int kSum, int kLeft, int kRight>
inline void amx_dot() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kLeft), "i"(kRight));
}

#elif defined(METAL_SDPA_EMULATE_AMX)

/// For tests on processors without the registers.
template <>
class AmxScope<true> {
 public:
  AmxScope() { in_use_ = true; }
  ~AmxScope() { in_use_ = false; }
  AmxScope(const AmxScope&) = delete;
  AmxScope& operator=(const AmxScope&) = delete;

  using Tile = std::uint32_t[kAmxRows][kAmxRows];
  static Tile& tile(int index) {
    if (!in_use_) __builtin_trap();
    return tiles_[index];
  }

 private:
  static inline thread_local bool in_use_ = false;
  static inline thread_local Tile tiles_[8];
};

inline float amx_float(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }

template <int kTile>
inline void amx_zero() {
  __builtin_memset(AmxScope<true>::tile(kTile), 0, sizeof(AmxScope<true>::Tile));
}
template <int kTile>
inline void amx_load(const float* p, sdpa_i64 step) {
  AmxScope<true>::Tile& tile = AmxScope<true>::tile(kTile);
  for (int i = 0; i < kAmxRows; ++i) __builtin_memcpy(tile[i], p + i * step, sizeof(tile[i]));
}
template <int kTile>
inline void amx_store(float* p, sdpa_i64 step) {
  const AmxScope<true>::Tile& tile = AmxScope<true>::tile(kTile);
  for (int i = 0; i < kAmxRows; ++i) __builtin_memcpy(p + i * step, tile[i], sizeof(tile[i]));
}
template <int kSum, int kLeft, int kRight>
inline void amx_dot() {
  constexpr std::uint32_t kUpper = 0xffff0000;
  const AmxScope<true>::Tile& left = AmxScope<true>::tile(kLeft);
  const AmxScope<true>::Tile& right = AmxScope<true>::tile(kRight);
  for (int m = 0; m < kAmxRows; ++m) {
    float even[kAmxRows] = {};
    float odd[kAmxRows] = {};
    for (int k = 0; k < kAmxRows; ++k) {
      const std::uint32_t a = left[m][k];
      for (int n = 0; n < kAmxRows; ++n) {
        const std::uint32_t b = right[k][n];
        even[n] = __builtin_fmaf(amx_float(a << 16), amx_float(b << 16), even[n]);
        odd[n] = __builtin_fmaf(amx_float(a & kUpper), amx_float(b & kUpper), odd[n]);
      }
    }
    std::uint32_t (&sums)[kAmxRows] = AmxScope<true>::tile(kSum)[m];
    for (int n = 0; n < kAmxRows; ++n) {
      const float sum = amx_float(sums[n]) + (even[n] + odd[n]);
      sums[n] = __builtin_bit_cast(std::uint32_t, sum);
    }
  }
}

#endif

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
