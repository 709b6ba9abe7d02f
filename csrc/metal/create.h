// Makes Metal devices; names no type of metal-cpp.
#pragma once

#include <memory>
#include <string>

#include "core/backend.h"

namespace metal_sdpa {

/// A device of its own over the system's default MTLDevice; nullptr with `reason` set where there
/// is none. `directory` is where metal_sdpa.metallib is looked for. metal_backend() makes the one
/// of the process with it; tests make more.
std::shared_ptr<Backend> create_metal_backend(std::string& reason, const std::string& directory);

}  // namespace metal_sdpa
