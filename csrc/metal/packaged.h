// The kernels that come with the library: a .metallib beside the binary, else the embedded source.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "core/backend.h"
#include "core/registry.h"
#include "metal/library.h"

namespace metal_sdpa {

/// What registries call the packaged library.
inline constexpr const char* kPackagedName = kOwnLibrary;

/// Opened once, when first needed. Safe from any thread.
class PackagedKernels {
 public:
  /// `directory`: where metal_sdpa.metallib is looked for.
  PackagedKernels(std::shared_ptr<MetalQueue> queue, const Backend* owning_backend,
                  std::string directory);

  /// ShaderCompilationError where neither the metallib nor the source can be used.
  std::shared_ptr<Library> open();

  /// "metallib PATH" or "embedded source (why)". Opens the library if need be.
  std::string origin();

 private:
  NS::SharedPtr<MTL::Library> open_metallib();

  std::shared_ptr<MetalQueue> queue_;
  const Backend* backend_;
  std::string directory_;
  std::mutex mutex_;
  std::shared_ptr<Library> opened_;
  std::string origin_;
};

/// The directory of the binary that holds this code; empty where it is unknown.
std::string library_directory();

}  // namespace metal_sdpa
