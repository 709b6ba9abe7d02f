// The kernels of arm64, where Advanced SIMD is the baseline.
#include "cpu/fast/kernel_tables.h"

namespace metal_sdpa::cpu {

namespace neon {
extern const FamilyKernels kPrefill, kDecode;
}
namespace neon_bf16 {
extern const FamilyKernels kPrefill, kDecode;
}

const KernelTable* kernel_table(Isa isa) noexcept {
  static constexpr KernelTable kNeon{&neon::kPrefill, &neon::kDecode};
  static constexpr KernelTable kNeonBf16{&neon_bf16::kPrefill, &neon_bf16::kDecode};
  switch (isa) {
    case Isa::baseline:
    case Isa::neon:
      return &kNeon;
    case Isa::neon_bf16:
      return &kNeonBf16;
    default:
      return nullptr;
  }
}

}  // namespace metal_sdpa::cpu
