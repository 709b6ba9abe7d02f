// Libraries of the CPU device: native kernels, and MSL sources that it can only name.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "core/backend.h"

namespace metal_sdpa::cpu {

class NativePipeline final : public Pipeline {
 public:
  NativePipeline() { checks_parameters = true; }
  NativeKernel kernel = nullptr;
};

/// The kernels of one registry's register_native.
class NativeLibrary final : public Library {
 public:
  explicit NativeLibrary(const Backend& backend) : backend_(backend) {}

  void add(const std::string& name, NativeKernel kernel);
  bool has_function(std::string_view name) const override;
  std::shared_ptr<Pipeline> make_pipeline(std::string_view name,
                                          const FunctionConstants& constants) override;

 private:
  const Backend& backend_;
  mutable std::mutex mutex_;
  std::map<std::string, NativeKernel, std::less<>> kernels_;  ///< guarded by mutex_
};

/// MSL that was registered on the CPU device: its kernels have names, but cannot run.
class SourceLibrary final : public Library {
 public:
  explicit SourceLibrary(std::string source) : source_(std::move(source)) {}

  bool has_function(std::string_view name) const override;
  std::shared_ptr<Pipeline> make_pipeline(std::string_view name,
                                          const FunctionConstants& constants) override;
  std::string unusable_reason() const override;

 private:
  std::string source_;
};

}  // namespace metal_sdpa::cpu
