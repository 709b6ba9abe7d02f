// Instruction sets of the CPU kernels, found at run time.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

namespace metal_sdpa::cpu {

enum class Isa {
  baseline,     ///< "baseline": what every CPU of the architecture has
  avx2,         ///< "avx2": AVX2, FMA, F16C
  avx512,       ///< "avx512": AVX-512 F, BW, DQ, VL
  avx512_bf16,  ///< "avx512_bf16": the same with AVX512_BF16
  neon,         ///< "neon": Armv8-A Advanced SIMD
  neon_bf16,    ///< "neon_bf16": the same with FEAT_BF16
};

const char* isa_name(Isa isa) noexcept;
std::optional<Isa> isa_from_name(std::string_view name) noexcept;

/// Whether this machine (processor and operating system) runs it and the build holds it.
bool isa_supported(Isa isa) noexcept;

/// The last of supported_isas().
Isa best_isa();

/// In the order of the enumeration; never empty.
std::vector<Isa> supported_isas();

}  // namespace metal_sdpa::cpu
