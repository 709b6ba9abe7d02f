// A place where kernels run: the CPU, or an Apple GPU through Metal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "metal_sdpa/buffer.h"
#include "metal_sdpa/export.h"

namespace metal_sdpa {

class Backend;
class CommandEncoder;

enum class DeviceKind { cpu, metal };

/// "cpu" or "metal".
METAL_SDPA_API const char* device_kind_name(DeviceKind kind) noexcept;

/// What a handle asks of its device beyond the kind. Neither changes which device it is.
struct DeviceOptions {
  int threads = 0;  ///< CPU threads for work from this handle; 0: get_num_threads()
  std::string isa;  ///< CPU instruction set by name ("baseline", "avx2", ...); empty: the best here
};

struct DeviceLimits {
  std::uint64_t max_buffer_bytes = 0;
  std::uint32_t max_threads_per_threadgroup = 0;
  std::uint32_t max_threadgroup_memory = 0;  ///< bytes
  std::uint32_t max_head_dim = 0;            ///< for D and Dv
  std::uint32_t max_inline_bytes = 4096;     ///< bytes of one inline binding
  std::uint32_t max_binding_index = 30;      ///< largest buffer index of a kernel
  std::uint32_t max_threadgroup_memory_index = 30;
};

/// Memory of the caller that `Device::wrap` gives to the device.
struct HostMemory {
  void* data = nullptr;
  std::size_t byte_len = 0;
  bool read_only = false;
  std::shared_ptr<void> owner;  ///< kept alive as long as any Buffer over the memory
};

/// A handle, cheap to copy and safe from any thread. Two handles of one kind are the same device.
class METAL_SDPA_API Device {
 public:
  /// `kind`: "auto" (Metal where there is one, else the CPU), "metal" or "cpu".
  /// DeviceNotFound where the kind or the device does not exist; InvalidArgument for options.
  explicit Device(std::string_view kind = "auto", DeviceOptions options = {});

  DeviceKind kind() const noexcept;
  const std::string& name() const noexcept;
  const DeviceLimits& limits() const noexcept;
  /// Where the device's kernels come from: "metallib PATH", "embedded source"; empty: built in.
  std::string library_origin() const;
  const DeviceOptions& options() const noexcept { return options_; }

  /// Waits for everything committed to the device before the call; throws the first error that
  /// nobody waited for. An interrupt cancels what the calling thread committed, and nothing else.
  void synchronize() const;

  /// Zero-filled memory at a 128-byte boundary. InvalidArgument where `byte_len` is 0 or is not
  /// the size of `shape`; BufferAllocationError where the device has no room.
  Buffer alloc_buffer(std::size_t byte_len, DType dtype, Shape shape) const;

  /// alloc_buffer with the byte length that `shape` and `dtype` need.
  Buffer empty(Shape shape, DType dtype) const;

  /// The caller's memory without a copy. Metal needs page-aligned memory and whole pages.
  Buffer wrap(const HostMemory& memory, DType dtype, Shape shape) const;

  /// A native buffer (id<MTLBuffer>) from `byte_offset`; Unsupported on the CPU.
  Buffer wrap_native(void* handle, std::size_t byte_offset, std::size_t byte_len, DType dtype,
                     Shape shape, std::shared_ptr<void> owner = nullptr) const;

  /// A fresh command encoder; one-shot, for one thread at a time.
  CommandEncoder command_encoder() const;

  bool operator==(const Device& other) const noexcept { return backend_ == other.backend_; }

  const std::shared_ptr<Backend>& backend() const noexcept { return backend_; }

 private:
  std::shared_ptr<Backend> backend_;
  DeviceOptions options_;
};

/// Threads that CPU work uses unless its handle says otherwise: at first the affinity mask capped
/// by the cgroup quota, or METAL_SDPA_NUM_THREADS as it was when the library was loaded.
METAL_SDPA_API int get_num_threads() noexcept;

/// InvalidArgument below 1 or above 1024. Results do not depend on it.
METAL_SDPA_API void set_num_threads(int n_threads);

/// Called at most every 10 ms on a thread that computes or waits inside the library; true cancels
/// what the thread waits for, which then throws Error(interrupted). Null (the default): never.
/// The check may call the library: sdpa() runs at once; waiting for work that the check itself
/// holds up, or for what stands behind it, is InvalidArgument. It must not wait for another thread
/// that waits for the device.
using InterruptCheck = bool (*)();
METAL_SDPA_API void set_interrupt_check(InterruptCheck check) noexcept;

/// Waits for what was committed to all devices before the call and ends the library's threads; a
/// later call starts them anew. Safe from any thread, beside calls of others. Does nothing inside
/// an interrupt check whose thread computes.
METAL_SDPA_API void shutdown() noexcept;

}  // namespace metal_sdpa
