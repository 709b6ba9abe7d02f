// The bf16 pair operations of simd.h where the machine has none: declared, so that code that tests
// kHasPairDot compiles, and never called.
#pragma once

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

inline constexpr bool kHasPairDot = false;
Vec dot_pairs(Vec acc, Vec a, Vec b);
void zip_pairs(Vec a, Vec b, Vec& low, Vec& high);
Vec pair_of_ones();
Vec upper_pairs(Vec a, Vec b);
Vec upper_half(Vec v);
Vec add_bits(Vec v, const std::uint32_t* p);
Vec absolute_pairs(Vec pairs);
std::uint32_t lanes_over(Vec a, Vec b);
Vec sqrt(Vec v);
Vec load_pairs(const BF16* p);
Vec load_pairs_first(const BF16* p, int n);
template <int kN>
Vec load_pairs_repeated(const BF16* p);
template <int kN>
Vec load_pairs_repeated_first(const BF16* p, int n);

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
