// Which instruction sets this machine runs.
#include "cpu/isa.h"

#include <array>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) && defined(__linux__)
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

constexpr std::array<NamedIsa, 8> kIsas{{{Isa::baseline, "baseline"},
                                         {Isa::avx2, "avx2"},
                                         {Isa::amx_emulated, "amx_emulated"},
                                         {Isa::avx512, "avx512"},
                                         {Isa::avx512_bf16, "avx512_bf16"},
                                         {Isa::avx512_amx, "avx512_amx"},
                                         {Isa::neon, "neon"},
                                         {Isa::neon_bf16, "neon_bf16"}}};

/// Whether the build holds kernels for it: METAL_SDPA_ISAS names them, with commas between. Where
/// it is not set all are there that the processor may have.
bool is_built([[maybe_unused]] Isa isa) noexcept {
#if defined(METAL_SDPA_ISAS)
  constexpr std::string_view kBuilt = "," METAL_SDPA_ISAS ",";
  const std::string_view name = isa_name(isa);
  for (std::size_t at = kBuilt.find(name); at != kBuilt.npos; at = kBuilt.find(name, at + 1)) {
    if (kBuilt[at - 1] == ',' && kBuilt[at + name.size()] == ',') return true;
  }
  return false;
#else
  return true;
#endif
}

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

#if defined(__x86_64__)
/// Whether the processor has AMX-BF16 and the system keeps its registers.
bool has_amx() noexcept {
  constexpr unsigned kXsave = 1u << 27;                  // OSXSAVE, of leaf 1's ecx
  constexpr unsigned kAmx = 1u << 22 | 1u << 24;         // BF16 and TILE, of leaf 7's edx
  constexpr unsigned kTileStates = 1u << 17 | 1u << 18;  // of XCR0
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & kXsave) == 0) return false;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kAmx) != kAmx) return false;
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & kTileStates) == kTileStates;
}
#endif

/// Asks the system for AMX's registers, for all threads of the process.
bool ask_for_amx() noexcept {
#if defined(__x86_64__) && defined(__linux__)
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

bool is_intel() noexcept {
#if defined(__x86_64__)
  __builtin_cpu_init();  // this may be called before constructors have run
  return __builtin_cpu_is("intel") != 0;
#else
  return false;
#endif
}

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
  if (!is_built(isa)) return false;
#if defined(__x86_64__)
  // These ask for the operating system's support of the registers, too.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
#if defined(METAL_SDPA_EMULATE_AVX512)
  const bool avx512 = avx2;
  const bool avx512_bf16 = avx2;
#else
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512) return avx512;
  if (isa == Isa::avx512_bf16) return avx512_bf16;
  if (isa == Isa::avx512_amx) return avx512_bf16 && has_amx();
#if defined(METAL_SDPA_EMULATE_AMX)
  if (isa == Isa::amx_emulated) return avx512_bf16;
#endif
#elif defined(__aarch64__)
  if (isa == Isa::neon) return true;
  if (isa == Isa::neon_bf16) return has_arm_bf16();
#endif
  return false;
}

bool isa_allowed(Isa isa) noexcept {
  if (isa != Isa::avx512_amx) return true;
  static const bool allowed = ask_for_amx();
  return allowed;
}

Isa best_isa() {
  Isa best = Isa::baseline;
  for (const Isa isa : supported_isas()) {
    if (!isa_allowed(isa)) continue;
    // Intel's processors make two f32 multiply-adds in the time of one dot product of pairs: on a
    // Xeon of the fourth generation 136 and 75 GFLOP/s.
    if (isa == Isa::avx512_bf16 && is_intel()) continue;
    best = isa;
  }
  return best;
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> supported;
  for (const NamedIsa& known : kIsas) {
    if (isa_supported(known.isa)) supported.push_back(known.isa);
  }
  return supported;
}

}  // namespace metal_sdpa::cpu
