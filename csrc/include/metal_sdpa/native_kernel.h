// The CPU device's kernel interface: a kernel is a function of the launch and a range of work.
#pragma once

#include <cstddef>
#include <cstdint>

#include "metal_sdpa/export.h"

namespace metal_sdpa {

/// Threadgroups, or threads of one; every extent at least 1.
struct GridSize {
  std::uint32_t x = 1;
  std::uint32_t y = 1;
  std::uint32_t z = 1;

  std::uint64_t count() const noexcept {
    return static_cast<std::uint64_t>(x) * y * z;  // encoders refuse grids of 2^63 and more
  }
};

/// What is bound to one buffer index.
struct BoundMemory {
  void* data = nullptr;      ///< nullptr: nothing is bound
  std::size_t byte_len = 0;  ///< of the view
};

/// Threadgroups begin..end, numbered x fastest, then y, then z.
struct WorkRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

/// Tells a kernel to leave early; a kernel that runs for long between two threadgroups asks it.
class METAL_SDPA_API StopToken {
 public:
  virtual bool stop_requested() noexcept = 0;

 protected:
  ~StopToken() = default;
};

/// Everything a native kernel knows of its dispatch. The same for every range of it.
struct NativeLaunch {
  static constexpr std::uint32_t kMaxBindings = 31;

  BoundMemory bindings[kMaxBindings];
  GridSize threadgroups;
  GridSize threadgroup_size;

  template <typename T>
  T* buffer(std::uint32_t index) const noexcept {
    return static_cast<T*>(bindings[index].data);
  }
  template <typename T>
  const T& value(std::uint32_t index) const noexcept {
    return *static_cast<const T*>(bindings[index].data);
  }
  bool bound(std::uint32_t index) const noexcept { return bindings[index].data != nullptr; }
};

/// Runs the threadgroups of `work`. Called from several threads at once with disjoint ranges. The
/// floating-point mode is round to nearest with subnormals honoured. An exception fails the
/// command buffer with its text. Once stop.stop_requested() is true the kernel returns and writes
/// nothing more.
using NativeKernel = void (*)(const NativeLaunch& launch, WorkRange work, StopToken& stop);

}  // namespace metal_sdpa
