// Floating-point mode of a thread while it runs kernels.
#pragma once

#include <cfenv>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace metal_sdpa::cpu {

/// Round to nearest, subnormals honoured, exceptions masked; the caller's mode comes back at the
/// end of the scope. New threads inherit their creator's mode, so workers need it too.
class FpModeScope {
 public:
  FpModeScope() noexcept : saved_(read()) { write(kKernelMode); }
  ~FpModeScope() { write(saved_); }
  FpModeScope(const FpModeScope&) = delete;
  FpModeScope& operator=(const FpModeScope&) = delete;

 private:
#if defined(__x86_64__)
  using Word = std::uint32_t;
  static constexpr Word kKernelMode = 0x1f80;  // MXCSR after reset: nearest, no FTZ, no DAZ
  static Word read() noexcept { return _mm_getcsr(); }
  static void write(Word word) noexcept { _mm_setcsr(word); }
#elif defined(__aarch64__)
  using Word = std::uint64_t;
  static constexpr Word kKernelMode = 0;  // FPCR: nearest, no FZ, no FZ16, no traps
  static Word read() noexcept {
    Word word;
    __asm__ volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void write(Word word) noexcept { __asm__ volatile("msr fpcr, %0" : : "r"(word)); }
#else
  using Word = int;
  static constexpr Word kKernelMode = FE_TONEAREST;
  static Word read() noexcept { return std::fegetround(); }
  static void write(Word word) noexcept { std::fesetround(word); }
#endif

  Word saved_;
};

}  // namespace metal_sdpa::cpu
