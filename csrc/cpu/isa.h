// Instruction sets of the CPU kernels, found at run time.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

namespace metal_sdpa::cpu {

enum class Isa {
  baseline,      ///< "baseline": what every CPU of the architecture has
  avx2,          ///< "avx2": AVX2, FMA, F16C
  amx_emulated,  ///< "amx_emulated": avx512_amx without its registers; only in developer builds
  avx512,        ///< "avx512": AVX-512 F, BW, DQ, VL
  avx512_bf16,   ///< "avx512_bf16": the same with AVX512_BF16
  avx512_amx,    ///< "avx512_amx": the same with AMX-BF16
  neon,          ///< "neon": Armv8-A Advanced SIMD
  neon_bf16,     ///< "neon_bf16": the same with FEAT_BF16
};

const char* isa_name(Isa isa) noexcept;
std::optional<Isa> isa_from_name(std::string_view name) noexcept;

/// Whether this machine (processor and operating system) runs it and the build holds it.
bool isa_supported(Isa isa) noexcept;

/// Whether this process may use it: Linux gives AMX's registers to processes that ask, and then
/// refuses signal stacks that are too small for them. The first call for avx512_amx asks.
bool isa_allowed(Isa isa) noexcept;

/// Whether the processor is one of Intel's, whose kernels differ in speed from AMD's.
bool is_intel() noexcept;

/// The one to take unless told otherwise. Asks for AMX's registers where there are any.
Isa best_isa();

/// In the order of the enumeration; never empty.
std::vector<Isa> supported_isas();

}  // namespace metal_sdpa::cpu
