// What the packed form of the straightforward kernel (sdpa, sdpa_f16, sdpa_bf16) is given by hand:
// shaders/sdpa_params.h says what it takes, and that is all that these kernels rely on.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "metal_sdpa/dtype.h"
#include "metal_sdpa/native_kernel.h"
#include "shaders/sdpa_params.h"

namespace metal_sdpa {

struct Dispatch;

/// The element type of a kernel with the packed form; nullopt for every other name. These are the
/// attention kernels that the library gives by name.
std::optional<DType> packed_kernel_dtype(std::string_view function);

/// Bytes that are bound to one buffer index.
struct BoundBytes {
  std::uint64_t address = 0;  ///< 0 for inline bytes, which share memory with nothing
  std::uint64_t byte_len = 0;
};

/// A launch without its parameters.
struct PackedLaunch {
  std::uint64_t element_size = 4;
  std::uint32_t max_head_dim = 0;
  GridSize threadgroups;
  std::array<BoundBytes, 5> buffers;  ///< q, k, v, output, parameters
};

/// Why the kernel would leave its memory, or has no meaning, with these parameters; empty where it
/// may run. Exact for any numbers.
std::string packed_launch_fault(const PackedLaunch& launch, const SdpaParamsBlock& params);

/// InvalidArgument, beginning with `call`, unless a dispatch of a packed kernel may be encoded.
/// Its parameters are checked too, unless they are in a Buffer or the kernel checks them itself.
void check_packed_dispatch(const Dispatch& dispatch, DType dtype, std::uint32_t max_head_dim,
                           const char* call);

}  // namespace metal_sdpa
