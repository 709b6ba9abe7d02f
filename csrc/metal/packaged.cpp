// Finding and opening the packaged kernels.
#include "metal/packaged.h"

#include <dlfcn.h>
#include <unistd.h>

#include <utility>

#include "core/text.h"
#include "metal/embedded_source.h"

namespace metal_sdpa {
namespace {

constexpr const char* kMetallib = "metal_sdpa.metallib";

}  // namespace

std::string library_directory() {
  Dl_info info{};
  if (::dladdr(reinterpret_cast<const void*>(&library_directory), &info) == 0) return {};
  const std::string path = info.dli_fname == nullptr ? "" : info.dli_fname;
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? std::string(".") : path.substr(0, slash);
}

PackagedKernels::PackagedKernels(std::shared_ptr<MetalQueue> queue, const Backend* owning_backend,
                                 std::string directory)
    : queue_(std::move(queue)), backend_(owning_backend), directory_(std::move(directory)) {}

NS::SharedPtr<MTL::Library> PackagedKernels::open_metallib() {
  const std::string path = directory_ + "/" + kMetallib;
  if (directory_.empty() || ::access(path.c_str(), R_OK) != 0) {
    origin_ = text_of("embedded source (no ", path, ")");
    return {};
  }
  NS::Error* error = nullptr;
  const NS::URL* url = NS::URL::fileURLWithPath(ns_string(path));
  auto library = NS::TransferPtr(queue_->device().newLibrary(url, &error));
  origin_ = library ? text_of("metallib ", path)
                    : text_of("embedded source (", path, ": ", error_text(error), ")");
  return library;
}

std::shared_ptr<Library> PackagedKernels::open() {
  queue_->require_same_process("get_pipeline");
  const AutoreleaseScope pool;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (opened_ != nullptr) return opened_;
  auto library = open_metallib();
  if (!library) library = compile_source(queue_->device(), kPackagedName, kEmbeddedShaderSource);
  opened_ = std::make_shared<MetalLibrary>(kPackagedName, std::move(library), queue_, backend_);
  return opened_;
}

std::string PackagedKernels::origin() {
  open();
  const std::lock_guard<std::mutex> lock(mutex_);
  return origin_;
}

}  // namespace metal_sdpa
