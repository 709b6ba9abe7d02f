// What a device implements. Core talks to devices through these five interfaces and nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/scratch.h"
#include "metal_sdpa/device.h"
#include "metal_sdpa/encoder.h"
#include "metal_sdpa/kernel_registry.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa {

/// An allocation, or memory of somebody else's, as a device sees it.
class Storage {
 public:
  virtual ~Storage() = default;

  /// First byte in the address space of aliasing and hazard checks: two storages over the same
  /// memory have overlapping addresses. Host addresses on both devices (Metal storage is shared).
  std::uint64_t address = 0;
  void* host = nullptr;  ///< nullptr where the host has no pointer
  std::size_t byte_len = 0;
  bool read_only = false;
  const Backend* backend = nullptr;

  /// The device's own object (id<MTLBuffer>), nullptr on the CPU.
  virtual void* native_handle() const noexcept { return nullptr; }
};

/// A function of a library with its constants set, ready to dispatch.
class Pipeline {
 public:
  virtual ~Pipeline() = default;
  std::string name;
  const Backend* backend = nullptr;
  std::uint32_t max_threads_per_threadgroup = 0;
  /// Element type of a kernel of ours that comes by hand: its dispatches are checked.
  std::optional<DType> packed_dtype;
  /// Function constants of such a kernel are for plans: they ask for other bindings.
  bool has_internal_constants = false;
  /// Whether such a kernel checks its parameters when it runs, and fails the command buffer.
  bool checks_parameters = false;
};

/// Functions made from one source, or a device's native kernels.
class Library {
 public:
  virtual ~Library() = default;
  virtual bool has_function(std::string_view name) const = 0;
  virtual std::shared_ptr<Pipeline> make_pipeline(std::string_view name,
                                                  const FunctionConstants& constants) = 0;
  /// Why the functions cannot run on this device ("is MSL only"), empty where they can.
  virtual std::string unusable_reason() const { return {}; }
};

/// A binding with its memory found: either storage or bytes.
struct DispatchBinding {
  std::uint32_t index = 0;
  std::shared_ptr<Storage> storage;
  std::size_t byte_offset = 0;
  std::size_t byte_len = 0;
  bool zero_first = false;  ///< scratch that is filled with 0 before the dispatch (CPU device)
  InlineBytes bytes;        ///< where storage is null
};

/// One validated dispatch as core hands it to a device.
struct Dispatch {
  std::shared_ptr<Pipeline> pipeline;
  std::vector<DispatchBinding> bindings;
  std::vector<ThreadgroupMemory> threadgroup_memory;
  GridSize threadgroups;
  GridSize threadgroup_size;
  double flops = -1;   ///< estimate; negative: unknown
  bool dealt = false;  ///< a threadgroup is what a thread is to take at once (CPU device)
};

enum class CommandStatus { encoding, committed, completed, failed };

/// One command buffer. Core checks states; a stream sees only legal sequences of calls.
class CommandStream {
 public:
  /// Dropping an uncommitted stream discards it; a committed one finishes.
  virtual ~CommandStream() = default;
  virtual void dispatch(const Dispatch& dispatch) = 0;
  virtual void barrier() = 0;
  virtual void commit() = 0;
  /// Returns when done; throws the stream's error. Polls the interrupt check.
  virtual void wait() = 0;
  /// commit and wait, on the calling thread where the device can.
  virtual void commit_and_wait() = 0;
  virtual double gpu_time_s() const = 0;
};

class Backend : public std::enable_shared_from_this<Backend> {
 public:
  virtual ~Backend() = default;
  const std::shared_ptr<ScratchPool>& scratch_pool() const noexcept { return scratch_pool_; }

  virtual DeviceKind kind() const noexcept = 0;
  virtual const std::string& name() const noexcept = 0;
  virtual const DeviceLimits& limits() const noexcept = 0;
  /// Where the device's kernels come from ("metallib PATH", "embedded source"); empty: built in.
  virtual std::string library_origin() const { return {}; }
  /// Whether "auto" takes this device where it exists.
  virtual bool preferred() const noexcept { return true; }
  /// InvalidArgument for options this device does not take.
  virtual void check_options(const DeviceOptions& options) const = 0;

  /// Zero-filled, at a 128-byte boundary.
  virtual std::shared_ptr<Storage> allocate(std::size_t byte_len) = 0;
  virtual std::shared_ptr<Storage> wrap_host(const HostMemory& memory) = 0;
  virtual std::shared_ptr<Storage> wrap_native(void* handle, std::shared_ptr<void> owner) = 0;

  virtual std::unique_ptr<CommandStream> command_stream(const DeviceOptions& options) = 0;
  virtual std::shared_ptr<Library> compile(const std::string& name, const std::string& source) = 0;
  /// Where register_native puts kernels; nullptr on a device that has none.
  virtual std::shared_ptr<Library> native_library() = 0;
  virtual void add_native(Library& library, const std::string& name, NativeKernel kernel) = 0;
  /// Adds the device's own attention kernels to a registry.
  virtual void register_sdpa(KernelRegistry& registry) = 0;

  /// Changes nothing: reads the problem, the options, the number of threads and facts of the
  /// device.
  virtual Plan plan_sdpa(const SdpaProblem& problem, const DeviceOptions& options) const = 0;

  /// Runs a plan after everything committed before and returns when it is done; through a command
  /// stream unless the device knows a shorter way.
  virtual void run_plan(const KernelRegistry& registry, const Plan& plan,
                        const SdpaOperands& operands, const ScratchList& scratch,
                        const DeviceOptions& options);

  virtual void synchronize() = 0;
  /// Finishes all work and ends the device's threads; later work starts them anew.
  virtual void shutdown() noexcept {}

 private:
  std::shared_ptr<ScratchPool> scratch_pool_ = std::make_shared<ScratchPool>();
};

/// The CPU device of this process; made on first use.
std::shared_ptr<Backend> cpu_backend();

/// The Metal device; nullptr with `reason` set where there is none (or no Metal in this build).
std::shared_ptr<Backend> metal_backend(std::string& reason);

}  // namespace metal_sdpa
