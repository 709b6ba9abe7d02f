// Stands in for the Metal device in a build that has none.
#include <memory>
#include <string>

#include "core/backend.h"

namespace metal_sdpa {

std::shared_ptr<Backend> metal_backend(std::string& reason) {
  reason = "this build of metal_sdpa has no Metal device (METAL_SDPA_METAL=OFF, or not macOS)";
  return nullptr;
}

}  // namespace metal_sdpa
