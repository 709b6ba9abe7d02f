// The Metal device behind core's Backend interface.
#pragma once

#include <memory>
#include <string>

#include "core/backend.h"
#include "metal/facts.h"
#include "metal/packaged.h"
#include "metal/queue.h"

namespace metal_sdpa {

class MetalBackend final : public Backend {
 public:
  /// `directory` is where the packaged .metallib is looked for.
  MetalBackend(NS::SharedPtr<MTL::Device> device, const std::string& directory);

  DeviceKind kind() const noexcept override { return DeviceKind::metal; }
  const std::string& name() const noexcept override { return name_; }
  const DeviceLimits& limits() const noexcept override { return limits_; }
  std::string library_origin() const override { return packaged_->origin(); }
  /// False for a device that only emulates one.
  bool preferred() const noexcept override;
  void check_options(const DeviceOptions& options) const override;

  std::shared_ptr<Storage> allocate(std::size_t byte_len) override;
  std::shared_ptr<Storage> wrap_host(const HostMemory& memory) override;
  std::shared_ptr<Storage> wrap_native(void* handle, std::shared_ptr<void> owner) override;

  std::unique_ptr<CommandStream> command_stream(const DeviceOptions& options) override;
  std::shared_ptr<Library> compile(const std::string& name, const std::string& source) override;
  std::shared_ptr<Library> native_library() override { return nullptr; }
  void add_native(Library& library, const std::string& name, NativeKernel kernel) override;
  void register_sdpa(KernelRegistry& registry) override;

  Plan plan_sdpa(const SdpaProblem& problem, const DeviceOptions& options) const override;

  void synchronize() override;
  void shutdown() noexcept override;

  const MetalFacts& facts() const noexcept { return facts_; }

 private:
  std::shared_ptr<MetalQueue> queue_;
  std::shared_ptr<PackagedKernels> packaged_;
  std::string name_;
  DeviceLimits limits_;
  MetalFacts facts_;
};

}  // namespace metal_sdpa
