// The packed form of the straightforward kernel: its parameter block, checked, as SdpaArgs.
#pragma once

#include <cstddef>

#include "metal_sdpa/native_kernel.h"
#include "shaders/sdpa_args.h"

namespace metal_sdpa::cpu {

/// The arguments of a launch of the straightforward kernel: SDPA_BUFFER_ARGS where that is bound,
/// which only plans do, else those of the packed form, which comes by hand: std::invalid_argument,
/// which fails the command buffer, where the kernel would leave the memory that is bound.
SdpaArgs launch_args(const NativeLaunch& launch, std::size_t element_size);

}  // namespace metal_sdpa::cpu
