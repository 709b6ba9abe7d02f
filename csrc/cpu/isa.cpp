// Which instruction sets this machine runs.
#include "cpu/isa.h"

#include <array>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace metal_sdpa::cpu {
namespace {

struct NamedIsa {
  Isa isa;
  const char* name;
};

constexpr std::array<NamedIsa, 6> kIsas{{{Isa::baseline, "baseline"},
                                         {Isa::avx2, "avx2"},
                                         {Isa::avx512, "avx512"},
                                         {Isa::avx512_bf16, "avx512_bf16"},
                                         {Isa::neon, "neon"},
                                         {Isa::neon_bf16, "neon_bf16"}}};

#if defined(__aarch64__)
bool has_arm_bf16() noexcept {
#if defined(__linux__)
  constexpr unsigned long kHwcap2Bf16 = 1ul << 14;  // HWCAP2_BF16 of the kernel's ABI
  return (getauxval(AT_HWCAP2) & kHwcap2Bf16) != 0;
#elif defined(__APPLE__)
  int value = 0;
  std::size_t size = sizeof(value);
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &value, &size, nullptr, 0) == 0 && value != 0;
#else
  return false;
#endif
}
#endif

}  // namespace

const char* isa_name(Isa isa) noexcept {
  for (const NamedIsa& known : kIsas) {
    if (known.isa == isa) return known.name;
  }
  return "?";
}

std::optional<Isa> isa_from_name(std::string_view name) noexcept {
  for (const NamedIsa& known : kIsas) {
    if (name == known.name) return known.isa;
  }
  return std::nullopt;
}

bool isa_supported(Isa isa) noexcept {
  if (isa == Isa::baseline) return true;
#if defined(__x86_64__)
  // These ask for the operating system's support of the registers, too.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512) return avx512;
  if (isa == Isa::avx512_bf16) return avx512 && __builtin_cpu_supports("avx512bf16");
#elif defined(__aarch64__)
  if (isa == Isa::neon) return true;
  if (isa == Isa::neon_bf16) return has_arm_bf16();
#endif
  return false;
}

Isa best_isa() { return supported_isas().back(); }

std::vector<Isa> supported_isas() {
  std::vector<Isa> supported;
  for (const NamedIsa& known : kIsas) {
    if (isa_supported(known.isa)) supported.push_back(known.isa);
  }
  return supported;
}

}  // namespace metal_sdpa::cpu
