// The kernels of each instruction set.
#pragma once

#include "cpu/isa.h"
#include "metal_sdpa/dtype.h"
#include "metal_sdpa/native_kernel.h"

namespace metal_sdpa::cpu {

/// One family's kernels by element type.
struct FamilyKernels {
  NativeKernel f32;
  NativeKernel f16;
  NativeKernel bf16;
};

/// What the kernel sources define in each instruction set's namespace.
struct KernelTable {
  const FamilyKernels* prefill;
  const FamilyKernels* decode;
};

/// nullptr where the build has no kernels for it.
const KernelTable* kernel_table(Isa isa) noexcept;

}  // namespace metal_sdpa::cpu
