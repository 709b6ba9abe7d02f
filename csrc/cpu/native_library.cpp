// Native kernels by name.
#include "cpu/native_library.h"

#include <regex>

#include "core/text.h"

namespace metal_sdpa::cpu {
namespace {

// The CPU device has no threadgroup of its own; this is what Apple GPUs take.
constexpr std::uint32_t kMaxThreadsPerThreadgroup = 1024;

}  // namespace

void NativeLibrary::add(const std::string& name, NativeKernel kernel) {
  const std::lock_guard<std::mutex> lock(mutex_);
  kernels_[name] = kernel;
}

bool NativeLibrary::has_function(std::string_view name) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return kernels_.find(name) != kernels_.end();
}

std::shared_ptr<Pipeline> NativeLibrary::make_pipeline(std::string_view name,
                                                       const FunctionConstants&) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = kernels_.find(name);
  if (found == kernels_.end()) {
    fail(ErrorCode::kernel_not_found, "get_pipeline: function: \"", name, "\" is no native kernel");
  }
  auto pipeline = std::make_shared<NativePipeline>();
  pipeline->name = std::string(name);
  pipeline->backend = &backend_;
  pipeline->max_threads_per_threadgroup = kMaxThreadsPerThreadgroup;
  pipeline->kernel = found->second;
  return pipeline;
}

bool SourceLibrary::has_function(std::string_view name) const {
  if (source_.find(name) == std::string::npos) return false;
  const std::string text(name);
  const bool plain = std::all_of(text.begin(), text.end(),
                                 [](unsigned char c) { return std::isalnum(c) != 0 || c == '_'; });
  if (!plain) return false;
  const std::regex function("(kernel\\s[^;{]*\\b" + text + "\\s*\\()|(host_name\\(\"" + text +
                            "\"\\))");
  return std::regex_search(source_, function);
}

std::shared_ptr<Pipeline> SourceLibrary::make_pipeline(std::string_view name,
                                                       const FunctionConstants&) {
  fail(ErrorCode::kernel_not_found, "get_pipeline: function: \"", name, "\" ", unusable_reason());
}

std::string SourceLibrary::unusable_reason() const {
  return "is MSL only; the cpu device runs kernels given by register_native";
}

}  // namespace metal_sdpa::cpu
