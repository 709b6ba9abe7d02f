// What each device supports: one table for dispatch, error texts, documentation and tests.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "metal_sdpa/device.h"
#include "metal_sdpa/export.h"

namespace metal_sdpa {

/// One row. A reason says why the device does not support the feature; empty: it does.
struct SupportedFeature {
  std::string_view feature;  ///< the argument that asks for it, or a property of arrays
  std::string_view cpu;
  std::string_view metal;
};

METAL_SDPA_API const std::vector<SupportedFeature>& supported_features();

/// Why devices of this kind do not support `feature`; empty where they do. InvalidArgument for a
/// feature that is not in the table.
METAL_SDPA_API std::string_view unsupported_reason(DeviceKind kind, std::string_view feature);

/// Unsupported, naming call and feature, unless the device supports it.
METAL_SDPA_API void require_feature(const char* call, DeviceKind kind, std::string_view feature);

}  // namespace metal_sdpa
