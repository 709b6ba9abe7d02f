// The kernels of x86-64.
#include "cpu/fast/kernel_tables.h"

namespace metal_sdpa::cpu {

namespace baseline {
extern const FamilyKernels kPrefill, kDecode;
}
namespace avx2 {
extern const FamilyKernels kPrefill, kDecode;
}
namespace avx512 {
extern const FamilyKernels kPrefill, kDecode;
}
namespace avx512_bf16 {
extern const FamilyKernels kPrefill, kDecode;
}

const KernelTable* kernel_table(Isa isa) noexcept {
  static constexpr KernelTable kBaseline{&baseline::kPrefill, &baseline::kDecode};
  static constexpr KernelTable kAvx2{&avx2::kPrefill, &avx2::kDecode};
  static constexpr KernelTable kAvx512{&avx512::kPrefill, &avx512::kDecode};
  static constexpr KernelTable kAvx512Bf16{&avx512_bf16::kPrefill, &avx512_bf16::kDecode};
  switch (isa) {
    case Isa::baseline:
      return &kBaseline;
    case Isa::avx2:
      return &kAvx2;
    case Isa::avx512:
      return &kAvx512;
    case Isa::avx512_bf16:
      return &kAvx512Bf16;
    default:
      return nullptr;
  }
}

}  // namespace metal_sdpa::cpu
