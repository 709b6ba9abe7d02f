// KernelRegistry: look-up in order of registration, lazy compile, one cache.
#include "core/registry.h"

#include <algorithm>
#include <utility>

#include "core/fork.h"
#include "core/packed_launch.h"
#include "core/text.h"

namespace metal_sdpa {
namespace {

constexpr const char* kNativeLibrary = "native";

using LibraryPtr = std::shared_ptr<RegisteredLibrary>;

/// Sorted by index; InvalidArgument where an index comes twice.
void sort_constants(FunctionConstants& constants) {
  const auto by_index = [](const FunctionConstant& a, const FunctionConstant& b) {
    return a.index < b.index;
  };
  std::sort(constants.begin(), constants.end(), by_index);
  for (std::size_t i = 1; i < constants.size(); ++i) {
    if (constants[i].index == constants[i - 1].index) {
      fail_argument("get_pipeline: constants: index ", constants[i].index, " is given twice");
    }
  }
}

LibraryPtr find_library(KernelRegistry::State& state, std::string_view name) {
  for (const LibraryPtr& library : state.libraries) {
    if (library->name == name) return library;
  }
  return nullptr;
}

void drop_pipelines(KernelRegistry::State& state) {
  state.pipelines.clear();
  ++state.revision;
}

/// Puts `entry` where a library of its name stands, else at the end. Caller holds the lock.
void place_library(KernelRegistry::State& state, LibraryPtr entry) {
  drop_pipelines(state);
  for (LibraryPtr& library : state.libraries) {
    if (library->name == entry->name) {
      library = std::move(entry);
      return;
    }
  }
  state.libraries.push_back(std::move(entry));
}

std::shared_ptr<Library> compiled_library(KernelRegistry::State& state,
                                          RegisteredLibrary& library) {
  const std::lock_guard<std::mutex> lock(library.compile_mutex);
  if (library.compiled != nullptr) return library.compiled;
  if (library.open) {
    library.compiled = library.open();
    return library.compiled;
  }
  library.compiled = state.device.backend()->compile(library.name, library.source);
  const std::lock_guard<std::mutex> table_lock(process_mutex());
  ++state.library_compiles;
  return library.compiled;
}

struct Candidate {
  LibraryPtr library;
  std::shared_ptr<Library> compiled;
};

/// Where a function was found that cannot be given.
struct NearMiss {
  std::string unusable;  ///< the first library that cannot run it, and why
  bool internal = false;
};

[[noreturn]] void fail_function(KernelRegistry::State& state, std::string_view function,
                                const NearMiss& miss) {
  const char* kind = device_kind_name(state.device.kind());
  if (!miss.unusable.empty()) {
    fail(ErrorCode::kernel_not_found, "get_pipeline: function: \"", function,
         "\" cannot run on the ", kind, " device: ", miss.unusable);
  }
  if (miss.internal) {
    fail(ErrorCode::kernel_not_found, "get_pipeline: function: \"", function,
         "\" is internal: its arguments are no public contract; encode_sdpa dispatches it");
  }
  fail(ErrorCode::kernel_not_found, "get_pipeline: function: \"", function,
       "\" is in no library of this registry for the ", kind, " device");
}

/// The library that has `function` and can run it here.
Candidate find_function(KernelRegistry::State& state, const std::vector<LibraryPtr>& libraries,
                        std::string_view function) {
  Candidate found;
  NearMiss miss;
  for (const LibraryPtr& library : libraries) {
    const std::shared_ptr<Library> compiled = compiled_library(state, *library);
    if (!compiled->has_function(function)) continue;
    if (library->is_own() && !packed_kernel_dtype(function).has_value()) {
      miss.internal = true;
      continue;
    }
    const std::string reason = compiled->unusable_reason();
    if (!reason.empty()) {
      if (miss.unusable.empty()) {
        miss.unusable = text_of("library \"", library->name, "\" ", reason);
      }
      continue;
    }
    if (found.compiled != nullptr) {
      fail_argument("get_pipeline: function: \"", function, "\" is in libraries \"",
                    found.library->name, "\" and \"", library->name, "\"; name one of them");
    }
    found = {library, compiled};
  }
  if (found.compiled == nullptr) fail_function(state, function, miss);
  return found;
}

std::shared_ptr<Pipeline> make_pipeline(const Candidate& candidate, std::string_view function,
                                        const FunctionConstants& constants) {
  std::shared_ptr<Pipeline> made = candidate.compiled->make_pipeline(function, constants);
  if (!candidate.library->is_own()) return made;
  made->packed_dtype = packed_kernel_dtype(function);
  made->has_internal_constants = !constants.empty();
  return made;
}

std::shared_ptr<Pipeline> find_pipeline(const KernelRegistry::State::PipelineCache& cache,
                                        const PipelineKeyView& key) {
  const std::lock_guard<std::mutex> lock(process_mutex());
  const auto hit = cache.find(key);
  return hit == cache.end() ? nullptr : hit->second;
}

std::vector<LibraryPtr> libraries_to_search(KernelRegistry::State& state, std::string_view library,
                                            std::uint64_t& revision) {
  const std::lock_guard<std::mutex> lock(process_mutex());
  revision = state.revision;
  if (library.empty()) return state.libraries;
  const LibraryPtr named = find_library(state, library);
  if (named == nullptr) {
    fail(ErrorCode::kernel_not_found, "get_pipeline: library: \"", library, "\" is not registered");
  }
  return {named};
}

}  // namespace

bool PipelineKeyLess::constants_less(const FunctionConstants& a, const FunctionConstants& b) {
  const auto less = [](const FunctionConstant& x, const FunctionConstant& y) {
    return x.index != y.index ? x.index < y.index : x.value < y.value;
  };
  return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end(), less);
}

KernelRegistry::KernelRegistry(const Device& device) : state_(std::make_shared<State>(device)) {
  register_sdpa(*this);
}

void KernelRegistry::register_source(std::string library, std::string source) {
  if (library.empty()) fail_argument("register_source: library: got an empty name");
  if (source.empty()) fail_argument("register_source: source: got an empty text");
  if (library == kOwnLibrary || library == kNativeLibrary) {
    fail_argument("register_source: library: \"", library, "\" is a library of metal_sdpa's own");
  }
  auto entry = std::make_shared<RegisteredLibrary>();
  entry->name = std::move(library);
  entry->source = std::move(source);
  const std::lock_guard<std::mutex> lock(process_mutex());
  place_library(*state_, std::move(entry));
}

void KernelRegistry::register_native(std::string name, NativeKernel kernel) {
  if (name.empty()) fail_argument("register_native: name: got an empty name");
  if (kernel == nullptr) fail_argument("register_native: kernel: got a null pointer");
  Backend& backend = *state_->device.backend();
  const std::lock_guard<std::mutex> lock(process_mutex());
  LibraryPtr native = find_library(*state_, kNativeLibrary);
  if (native == nullptr) {
    native = std::make_shared<RegisteredLibrary>();
    native->name = kNativeLibrary;
    native->compiled = backend.native_library();
    if (native->compiled == nullptr) {
      fail(ErrorCode::unsupported, "register_native: the ", device_kind_name(backend.kind()),
           " device runs no native kernels");
    }
    state_->libraries.push_back(native);
  }
  backend.add_native(*native->compiled, name, kernel);
  drop_pipelines(*state_);
}

void add_own_library(KernelRegistry& registry, std::function<std::shared_ptr<Library>()> open) {
  auto entry = std::make_shared<RegisteredLibrary>();
  entry->name = kOwnLibrary;
  entry->open = std::move(open);
  const std::lock_guard<std::mutex> lock(process_mutex());
  if (find_library(*registry.state(), entry->name) != nullptr) return;
  place_library(*registry.state(), std::move(entry));
}

std::shared_ptr<Pipeline> KernelRegistry::get_pipeline(std::string_view function,
                                                       FunctionConstants constants,
                                                       std::string_view library) const {
  sort_constants(constants);
  std::shared_ptr<Pipeline> cached =
      find_pipeline(state_->pipelines, {library, function, &constants});
  if (cached != nullptr) return cached;
  std::uint64_t revision = 0;
  const std::vector<LibraryPtr> libraries = libraries_to_search(*state_, library, revision);
  const Candidate candidate = find_function(*state_, libraries, function);
  std::shared_ptr<Pipeline> made = make_pipeline(candidate, function, constants);

  const std::lock_guard<std::mutex> lock(process_mutex());
  if (state_->revision != revision) return made;  // registered anew meanwhile: do not keep it
  PipelineKey key{std::string(library), std::string(function), std::move(constants)};
  return state_->pipelines.emplace(std::move(key), std::move(made)).first->second;
}

std::shared_ptr<Pipeline> plan_pipeline(const KernelRegistry& registry, std::string_view function,
                                        FunctionConstants constants) {
  sort_constants(constants);
  KernelRegistry::State& state = *registry.state();
  std::shared_ptr<Pipeline> cached =
      find_pipeline(state.plan_pipelines, {"", function, &constants});
  if (cached != nullptr) return cached;
  std::uint64_t revision = 0;
  const LibraryPtr own = libraries_to_search(state, kOwnLibrary, revision).front();
  std::shared_ptr<Pipeline> made =
      compiled_library(state, *own)->make_pipeline(function, constants);

  const std::lock_guard<std::mutex> lock(process_mutex());
  PipelineKey key{"", std::string(function), std::move(constants)};
  return state.plan_pipelines.emplace(std::move(key), std::move(made)).first->second;
}

const Device& KernelRegistry::device() const noexcept { return state_->device; }

std::size_t KernelRegistry::cached_pipelines() const {
  const std::lock_guard<std::mutex> lock(process_mutex());
  return state_->pipelines.size() + state_->plan_pipelines.size();
}

std::size_t KernelRegistry::library_compiles() const {
  const std::lock_guard<std::mutex> lock(process_mutex());
  return state_->library_compiles;
}

void register_sdpa(KernelRegistry& registry) {
  registry.device().backend()->register_sdpa(registry);
}

const KernelRegistry& default_registry(const Device& device) {
  // One a backend, kept for good: at most two backends exist.
  static std::mutex mutex;
  static std::map<const Backend*, std::unique_ptr<KernelRegistry>>* const registries =
      new std::map<const Backend*, std::unique_ptr<KernelRegistry>>;
  thread_local const Backend* last_backend = nullptr;
  thread_local const KernelRegistry* last_registry = nullptr;
  if (last_backend == device.backend().get()) return *last_registry;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<KernelRegistry>& registry = (*registries)[device.backend().get()];
  if (registry == nullptr) registry = std::make_unique<KernelRegistry>(device);
  last_backend = device.backend().get();
  last_registry = registry.get();
  return *registry;
}

const std::string& pipeline_name(const Pipeline& pipeline) noexcept { return pipeline.name; }

}  // namespace metal_sdpa
