// Stands in for the kernels of an instruction set that the build leaves out (METAL_SDPA_ISAS).
#include "cpu/fast/kernel_tables.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

extern const FamilyKernels kPrefill;
extern const FamilyKernels kDecode;
const FamilyKernels kPrefill{};
const FamilyKernels kDecode{};

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
