// Every check on a problem and its memory, for all devices.
#pragma once

#include <cstdint>

#include "core/backend.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa {

/// The problem that SdpaParams describe; dtype is that of `q`.
SdpaProblem problem_from_params(const SdpaParams& params, const Buffer& q, std::int64_t batch_size);

/// Dtypes, devices, extents and overlaps of the memory; the problem must have passed
/// validate_problem. `look_at_entries`: also the page numbers that rows see, where the problem
/// wants that. Exported for the bindings; no public header declares it.
METAL_SDPA_API void validate_operands(const SdpaProblem& problem, const SdpaOperands& operands,
                                      const Backend& backend, const char* call,
                                      bool look_at_entries = true);

/// The block table alone: dtype, device, extent, and the page numbers that rows see.
void validate_table(const SdpaProblem& problem, const Buffer& block_table, const Backend& backend,
                    const char* call);

/// Unsupported, naming the feature, where the problem asks for one that such devices do not have.
/// Exported for the bindings too.
METAL_SDPA_API void require_features(const char* call, DeviceKind kind, const SdpaProblem& problem);

}  // namespace metal_sdpa
