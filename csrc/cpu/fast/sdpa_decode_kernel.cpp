// sdpa_decode, compiled once for each instruction set.
#include "cpu/fast/kernel_tables.h"
#include "cpu/fast/launch_view.h"
#include "cpu/fast/simd.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

extern const FamilyKernels kDecode;
const FamilyKernels kDecode{nullptr, nullptr, nullptr};

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
