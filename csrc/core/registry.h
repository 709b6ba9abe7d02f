// The inside of a KernelRegistry.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "core/backend.h"
#include "metal_sdpa/kernel_registry.h"

namespace metal_sdpa {

/// The library of the device's attention kernels. The names of the packed kernels are public
/// (core/packed_launch.h), all others are for plans: their arguments are no contract.
inline constexpr const char* kOwnLibrary = "metal_sdpa";

/// A library of a registry, compiled when first asked for a function. A source that is registered
/// anew is a new entry in the same place.
struct RegisteredLibrary {
  std::string name;
  std::string source;                              ///< where `open` is empty
  std::function<std::shared_ptr<Library>()> open;  ///< opens a library that needs no compile
  std::shared_ptr<Library> compiled;               ///< guarded by `compile_mutex`
  std::mutex compile_mutex;

  bool is_own() const { return name == kOwnLibrary; }
};

struct PipelineKey {
  std::string library;  ///< as asked for; empty: any
  std::string function;
  FunctionConstants constants;  ///< in order of index
};

struct PipelineKeyView {
  std::string_view library;
  std::string_view function;
  const FunctionConstants* constants;
};

struct PipelineKeyLess {
  using is_transparent = void;
  static PipelineKeyView view(const PipelineKey& key) {
    return {key.library, key.function, &key.constants};
  }
  static PipelineKeyView view(const PipelineKeyView& key) { return key; }
  static bool constants_less(const FunctionConstants& a, const FunctionConstants& b);
  template <typename A, typename B>
  bool operator()(const A& a_key, const B& b_key) const {
    const PipelineKeyView a = view(a_key);
    const PipelineKeyView b = view(b_key);
    if (a.function != b.function) return a.function < b.function;
    if (a.library != b.library) return a.library < b.library;
    return constants_less(*a.constants, *b.constants);
  }
};

struct KernelRegistry::State {
  explicit State(const Device& owner) : device(owner) {}

  Device device;
  // All guarded by process_mutex(): held for table look-ups only, never while compiling.
  std::vector<std::shared_ptr<RegisteredLibrary>> libraries;
  using PipelineCache = std::map<PipelineKey, std::shared_ptr<Pipeline>, PipelineKeyLess>;
  PipelineCache pipelines;
  PipelineCache plan_pipelines;  ///< of kOwnLibrary, which nothing replaces
  std::uint64_t revision = 0;    ///< counts registrations; a pipeline made meanwhile is not cached
  std::size_t library_compiles = 0;
};

/// Adds kOwnLibrary, opened when first needed. One that is registered already stays.
void add_own_library(KernelRegistry& registry, std::function<std::shared_ptr<Library>()> open);

/// The pipeline of a kernel of kOwnLibrary, as plans name it. What a caller registers never takes
/// its place.
std::shared_ptr<Pipeline> plan_pipeline(const KernelRegistry& registry, std::string_view function,
                                        FunctionConstants constants);

/// The registry that `sdpa` uses for a device; made once a backend.
const KernelRegistry& default_registry(const Device& device);

}  // namespace metal_sdpa
