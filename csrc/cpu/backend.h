// The CPU device.
#pragma once

#include <memory>
#include <string>

#include "core/backend.h"
#include "cpu/isa.h"
#include "cpu/queue.h"

namespace metal_sdpa::cpu {

class CpuBackend final : public Backend {
 public:
  CpuBackend();

  DeviceKind kind() const noexcept override { return DeviceKind::cpu; }
  const std::string& name() const noexcept override { return name_; }
  const DeviceLimits& limits() const noexcept override { return limits_; }
  void check_options(const DeviceOptions& options) const override;

  std::shared_ptr<Storage> allocate(std::size_t byte_len) override;
  std::shared_ptr<Storage> wrap_host(const HostMemory& memory) override;
  std::shared_ptr<Storage> wrap_native(void* handle, std::shared_ptr<void> owner) override;

  std::unique_ptr<CommandStream> command_stream(const DeviceOptions& options) override;
  std::shared_ptr<Library> compile(const std::string& name, const std::string& source) override;
  std::shared_ptr<Library> native_library() override;
  void add_native(Library& library, const std::string& name, NativeKernel kernel) override;
  void register_sdpa(KernelRegistry& registry) override;
  Plan plan_sdpa(const SdpaProblem& problem, const DeviceOptions& options) const override;
  void run_plan(const KernelRegistry& registry, const Plan& plan, const SdpaOperands& operands,
                const ScratchList& scratch, const DeviceOptions& options) override;
  void synchronize() override;
  void shutdown() noexcept override;

  /// The queue of this process: a child of fork() gets a new one, the old one is left alone.
  const std::shared_ptr<Queue>& queue() const noexcept { return queue_; }
  void replace_queue_after_fork();

 private:
  std::shared_ptr<Library> attention_library() const;
  Isa isa_for(const DeviceOptions& options) const;

  std::string name_;
  DeviceLimits limits_;
  Isa default_isa_;
  std::shared_ptr<Queue> queue_;
};

}  // namespace metal_sdpa::cpu
