// Kernels by name: shader sources, native CPU kernels, and the pipelines made from them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "metal_sdpa/device.h"
#include "metal_sdpa/export.h"
#include "metal_sdpa/native_kernel.h"

namespace metal_sdpa {

class Pipeline;

/// A function constant: its index in the shader and its value.
struct FunctionConstant {
  std::uint32_t index = 0;
  std::variant<bool, std::int32_t, std::uint32_t, float> value;

  bool operator==(const FunctionConstant& other) const = default;
};
using FunctionConstants = std::vector<FunctionConstant>;

/// Thread-safe; copies share one registry. A new registry holds the library's own kernels. Those
/// whose arguments are no public contract run through sdpa and encode_sdpa only.
class METAL_SDPA_API KernelRegistry {
 public:
  explicit KernelRegistry(const Device& device);

  /// Adds MSL source under a library name. The same name again replaces the source and drops every
  /// pipeline made from the old one. Compiled when first needed. "metal_sdpa" and "native" are the
  /// library's own names.
  void register_source(std::string library, std::string source);

  /// Gives the CPU device a kernel, in library "native". Unsupported on Metal. The same name again
  /// replaces it; the library's own kernels are never replaced.
  void register_native(std::string name, NativeKernel kernel);

  /// The pipeline of `function`. Of the library's own, in library "metal_sdpa", these are sdpa,
  /// sdpa_f16 and sdpa_bf16, dispatched without constants; what they are given by hand is checked
  /// against their bindings. Libraries are searched in order of registration; InvalidArgument where
  /// two have it and `library` is empty, or a constant is given twice; KernelNotFound where none
  /// has it; ShaderCompilationError with the compiler's log. Made once per (device, library,
  /// function, constants in order of index).
  std::shared_ptr<Pipeline> get_pipeline(std::string_view function,
                                         FunctionConstants constants = {},
                                         std::string_view library = {}) const;

  const Device& device() const noexcept;

  /// Pipelines in the cache, and library compiles done so far.
  std::size_t cached_pipelines() const;
  std::size_t library_compiles() const;

  struct State;
  const std::shared_ptr<State>& state() const noexcept { return state_; }

 private:
  std::shared_ptr<State> state_;
};

/// Registers the attention kernels; every new registry has done it, and doing it again is harmless.
METAL_SDPA_API void register_sdpa(KernelRegistry& registry);

/// The function name of a pipeline.
METAL_SDPA_API const std::string& pipeline_name(const Pipeline& pipeline) noexcept;

}  // namespace metal_sdpa
