// The CPU device: memory, kernels, options.
#include "cpu/backend.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>

#include "core/fork.h"
#include "core/registry.h"
#include "core/text.h"
#include "cpu/element.h"
#include "cpu/fast/fast.h"
#include "cpu/immediate.h"
#include "cpu/merge_states.h"
#include "cpu/native_library.h"
#include "cpu/plan.h"
#include "cpu/sdpa.h"
#include "cpu/sdpa_merge.h"
#include "cpu/stream.h"
#include "cpu/thread_count.h"
#include "cpu/write_kv.h"

namespace metal_sdpa {
namespace cpu {
namespace {

constexpr std::size_t kAlignment = 128;
// From here on fresh pages of the system are zero already; smaller memory comes from the heap.
constexpr std::size_t kMapFrom = std::size_t{4} << 20;
// User address space of the supported processors.
constexpr std::uint64_t kMaxBuffer = std::uint64_t{1} << 47;

class HeapStorage final : public Storage {
 public:
  ~HeapStorage() override { std::free(host); }
};

class MappedStorage final : public Storage {
 public:
  ~MappedStorage() override { munmap(host, byte_len); }
};

int thread_limit(const DeviceOptions& options) {
  return options.threads > 0 ? options.threads : get_num_threads();
}

class WrappedStorage final : public Storage {
 public:
  std::shared_ptr<void> owner;
};

[[noreturn]] void fail_allocation(std::size_t byte_len) {
  fail(ErrorCode::buffer_allocation, "alloc_buffer: the system has no room for ", byte_len,
       " bytes");
}

std::shared_ptr<Storage> allocate_heap(std::size_t byte_len) {
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, byte_len) != 0) fail_allocation(byte_len);
  std::memset(memory, 0, byte_len);
  auto storage = std::make_shared<HeapStorage>();
  storage->host = memory;
  return storage;
}

std::shared_ptr<Storage> allocate_pages(std::size_t byte_len) {
  void* memory =
      mmap(nullptr, byte_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail_allocation(byte_len);
#if defined(MADV_HUGEPAGE)
  // A hint: a cache that is read from end to end meets fewer page walks (a third more GB/s).
  madvise(memory, byte_len, MADV_HUGEPAGE);
#endif
  auto storage = std::make_shared<MappedStorage>();
  storage->host = memory;
  return storage;
}

void describe_memory(Storage& storage, std::size_t byte_len, const Backend& backend) {
  storage.byte_len = byte_len;
  storage.address = reinterpret_cast<std::uint64_t>(storage.host);
  storage.backend = &backend;
}

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  std::string line;
  while (std::getline(info, line)) {
    if (line.rfind("model name", 0) != 0) continue;
    const std::size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "CPU";
}

Isa isa_by_name(const std::string& name, const char* source) {
  const std::optional<Isa> isa = isa_from_name(name);
  if (isa.has_value() && isa_supported(*isa) && isa_allowed(*isa)) return *isa;
  std::string supported;
  for (const Isa known : supported_isas()) {
    supported += supported.empty() ? "" : ", ";
    supported += isa_name(known);
  }
  fail_argument(source, ": \"", name, "\", this machine has ", supported);
}

/// METAL_SDPA_ISA as it was when the library was loaded.
const std::string& isa_from_environment() {
  static const std::string* const name = [] {
    const char* text = std::getenv("METAL_SDPA_ISA");
    return new std::string(text == nullptr ? "" : text);
  }();
  return *name;
}
[[maybe_unused]] const std::string& g_read_at_load = isa_from_environment();

CpuBackend* g_backend = nullptr;

}  // namespace

CpuBackend::CpuBackend()
    : default_isa_(isa_from_environment().empty()
                       ? best_isa()
                       : isa_by_name(isa_from_environment(), "METAL_SDPA_ISA")),
      queue_(std::make_shared<Queue>()) {
  require_valid_environment();
  name_ = cpu_name();
  limits_.max_buffer_bytes = kMaxBuffer;
  limits_.max_threads_per_threadgroup = 1024;
  limits_.max_threadgroup_memory = 32768;
  limits_.max_head_dim = kMaxHeadDim;
}

Isa CpuBackend::isa_for(const DeviceOptions& options) const {
  return options.isa.empty() ? default_isa_ : *isa_from_name(options.isa);
}

void CpuBackend::check_options(const DeviceOptions& options) const {
  if (options.threads < 0 || options.threads > kMaxThreads) {
    fail_argument("Device: threads: ", options.threads, ", takes 1 to ", kMaxThreads);
  }
  if (!options.isa.empty()) isa_by_name(options.isa, "Device: isa");
}

std::shared_ptr<Storage> CpuBackend::allocate(std::size_t byte_len) {
  std::shared_ptr<Storage> storage =
      byte_len < kMapFrom ? allocate_heap(byte_len) : allocate_pages(byte_len);
  describe_memory(*storage, byte_len, *this);
  return storage;
}

std::shared_ptr<Storage> CpuBackend::wrap_host(const HostMemory& memory) {
  auto storage = std::make_shared<WrappedStorage>();
  storage->host = memory.data;
  storage->read_only = memory.read_only;
  storage->owner = memory.owner;
  describe_memory(*storage, memory.byte_len, *this);
  return storage;
}

std::shared_ptr<Storage> CpuBackend::wrap_native(void*, std::shared_ptr<void>) {
  fail(ErrorCode::unsupported, "wrap_native: the cpu device has no native buffers");
}

std::unique_ptr<CommandStream> CpuBackend::command_stream(const DeviceOptions& options) {
  return std::make_unique<CpuStream>(queue_, thread_limit(options));
}

std::shared_ptr<Library> CpuBackend::compile(const std::string&, const std::string& source) {
  return std::make_shared<SourceLibrary>(source);
}

std::shared_ptr<Library> CpuBackend::native_library() {
  return std::make_shared<NativeLibrary>(*this);
}

void CpuBackend::add_native(Library& library, const std::string& name, NativeKernel kernel) {
  static_cast<NativeLibrary&>(library).add(name, kernel);
}

void CpuBackend::register_sdpa(KernelRegistry& registry) {
  add_own_library(registry, [this] { return attention_library(); });
}

std::shared_ptr<Library> CpuBackend::attention_library() const {
  auto library = std::make_shared<NativeLibrary>(*this);
  library->add("sdpa", sdpa_kernel<float>);
  library->add("sdpa_f16", sdpa_kernel<F16>);
  library->add("sdpa_bf16", sdpa_kernel<BF16>);
  library->add("sdpa_merge", sdpa_merge_kernel<float>);
  library->add("sdpa_merge_f16", sdpa_merge_kernel<F16>);
  library->add("sdpa_merge_bf16", sdpa_merge_kernel<BF16>);
  library->add("merge_states_f32_f32", merge_states_kernel<float, float>);
  library->add("merge_states_f32_f16", merge_states_kernel<float, F16>);
  library->add("merge_states_f32_bf16", merge_states_kernel<float, BF16>);
  library->add("merge_states_f16_f32", merge_states_kernel<F16, float>);
  library->add("merge_states_f16_f16", merge_states_kernel<F16, F16>);
  library->add("merge_states_f16_bf16", merge_states_kernel<F16, BF16>);
  library->add("merge_states_bf16_f32", merge_states_kernel<BF16, float>);
  library->add("merge_states_bf16_f16", merge_states_kernel<BF16, F16>);
  library->add("merge_states_bf16_bf16", merge_states_kernel<BF16, BF16>);
  library->add("write_kv_16", write_kv_kernel<std::uint16_t>);
  library->add("write_kv_32", write_kv_kernel<std::uint32_t>);
  register_fast([&library](const char* name, NativeKernel kernel) { library->add(name, kernel); });
  return library;
}

Plan CpuBackend::plan_sdpa(const SdpaProblem& problem, const DeviceOptions& options) const {
  return cpu::plan_sdpa(problem, {isa_for(options), thread_limit(options)});
}

void CpuBackend::run_plan(const KernelRegistry& registry, const Plan& plan,
                          const SdpaOperands& operands, const ScratchList& scratch,
                          const DeviceOptions& options) {
  const std::shared_ptr<Queue> queue = queue_;
  if (run_immediately(*queue, registry, plan, operands, scratch, thread_limit(options))) return;
  Backend::run_plan(registry, plan, operands, scratch, options);
}

void CpuBackend::synchronize() { queue_->synchronize(); }

void CpuBackend::shutdown() noexcept { queue_->shutdown(); }

void CpuBackend::replace_queue_after_fork() {
  // The old queue's threads are gone and its mutex may be locked: it must never be destroyed.
  new std::shared_ptr<Queue>(std::move(queue_));
  queue_ = std::make_shared<Queue>();
}

}  // namespace cpu

std::shared_ptr<Backend> cpu_backend() {
  // Lives as long as the process; threads end at exit, before statics they may use are gone.
  static const std::shared_ptr<cpu::CpuBackend>* const backend = [] {
    auto* made = new std::shared_ptr<cpu::CpuBackend>(std::make_shared<cpu::CpuBackend>());
    cpu::g_backend = made->get();
    at_fork_child([] { cpu::g_backend->replace_queue_after_fork(); });
    std::atexit([] { cpu::g_backend->shutdown(); });
    return made;
  }();
  return *backend;
}

}  // namespace metal_sdpa
