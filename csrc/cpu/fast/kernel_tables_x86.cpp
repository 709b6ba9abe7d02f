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
namespace avx512_amx {
extern const FamilyKernels kPrefill;
}
#if defined(METAL_SDPA_EMULATE_AMX)
namespace amx_emulated {
extern const FamilyKernels kPrefill;
}
#endif

namespace {

FamilyKernels with_bf16_of(const FamilyKernels& amx) {
  return {avx512::kPrefill.f32, avx512::kPrefill.f16, amx.bf16};
}

}  // namespace

const KernelTable* kernel_table(Isa isa) noexcept {
  static constexpr KernelTable kBaseline{&baseline::kPrefill, &baseline::kDecode};
  static constexpr KernelTable kAvx2{&avx2::kPrefill, &avx2::kDecode};
  static constexpr KernelTable kAvx512{&avx512::kPrefill, &avx512::kDecode};
  static constexpr KernelTable kAvx512Bf16{&avx512_bf16::kPrefill, &avx512_bf16::kDecode};
  // Processors with AMX are slow at dot products of pairs in vectors (best_isa has figures).
  static const FamilyKernels kAmxPrefill = with_bf16_of(avx512_amx::kPrefill);
  static const KernelTable kAvx512Amx{&kAmxPrefill, &avx512::kDecode};
#if defined(METAL_SDPA_EMULATE_AMX)
  static const FamilyKernels kEmulatedPrefill = with_bf16_of(amx_emulated::kPrefill);
  static const KernelTable kAmxEmulated{&kEmulatedPrefill, &avx512::kDecode};
#endif
  switch (isa) {
    case Isa::baseline:
      return &kBaseline;
    case Isa::avx2:
      return &kAvx2;
    case Isa::avx512:
      return &kAvx512;
    case Isa::avx512_bf16:
      return &kAvx512Bf16;
    case Isa::avx512_amx:
      return &kAvx512Amx;
#if defined(METAL_SDPA_EMULATE_AMX)
    case Isa::amx_emulated:
      return &kAmxEmulated;
#endif
    default:
      return nullptr;
  }
}

}  // namespace metal_sdpa::cpu
