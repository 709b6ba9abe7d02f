// The Metal device.
#include "metal/backend.h"

#include <cstring>
#include <mutex>
#include <utility>

#include "core/fork.h"
#include "core/registry.h"
#include "core/text.h"
#include "metal/create.h"
#include "metal/plan.h"
#include "metal/storage.h"
#include "metal/stream.h"

namespace metal_sdpa {
namespace {

int apple_family(MTL::Device& device) {
  for (int family = 20; family >= 1; --family) {  // MTLGPUFamilyAppleN is 1000 + N
    if (device.supportsFamily(static_cast<MTL::GPUFamily>(1000 + family))) return family;
  }
  return 0;
}

DeviceLimits limits_of(MTL::Device& device) {
  DeviceLimits limits;
  limits.max_buffer_bytes = device.maxBufferLength();
  limits.max_threads_per_threadgroup =
      static_cast<std::uint32_t>(device.maxThreadsPerThreadgroup().width);
  limits.max_threadgroup_memory = static_cast<std::uint32_t>(device.maxThreadgroupMemoryLength());
  limits.max_head_dim = kMetalMaxHeadDim;
  return limits;
}

/// Metal maps whole pages only.
void require_whole_pages(const HostMemory& memory) {
  const std::size_t page = page_byte_len();
  const std::size_t into_page = reinterpret_cast<std::uintptr_t>(memory.data) % page;
  if (into_page != 0) {
    fail_argument("wrap: data: starts ", into_page, " bytes into a page, metal takes memory at a ",
                  "page boundary (", page, " bytes); allocate it with alloc_buffer or mmap");
  }
  if (memory.byte_len % page != 0) {
    fail_argument("wrap: byte_len: ", memory.byte_len, ", metal takes whole pages of ", page,
                  " bytes; allocate it with alloc_buffer or mmap");
  }
}

}  // namespace

MetalBackend::MetalBackend(NS::SharedPtr<MTL::Device> device, const std::string& directory)
    : queue_(std::make_shared<MetalQueue>(std::move(device))),
      packaged_(std::make_shared<PackagedKernels>(queue_, this, directory)),
      name_(std_string(queue_->device().name())),
      limits_(limits_of(queue_->device())) {
  facts_.apple_family = apple_family(queue_->device());
  facts_.max_threads_per_threadgroup = limits_.max_threads_per_threadgroup;
  facts_.max_threadgroup_memory = limits_.max_threadgroup_memory;
}

bool MetalBackend::preferred() const noexcept { return name_.rfind("Software", 0) != 0; }

void MetalBackend::check_options(const DeviceOptions& options) const {
  if (options.threads != 0) {
    fail_argument("Device: threads: ", options.threads, ", the metal device takes none");
  }
  if (!options.isa.empty()) {
    fail_argument("Device: isa: \"", options.isa, "\", the metal device takes none");
  }
}

std::shared_ptr<Storage> MetalBackend::allocate(std::size_t byte_len) {
  queue_->require_same_process("alloc_buffer");
  const AutoreleaseScope pool;
  auto buffer =
      NS::TransferPtr(queue_->device().newBuffer(byte_len, MTL::ResourceStorageModeShared));
  if (!buffer || buffer->contents() == nullptr) {
    fail(ErrorCode::buffer_allocation, "alloc_buffer: byte_len: ", byte_len, ", the ", name_,
         " device has no room for it");
  }
  std::memset(buffer->contents(), 0, byte_len);  // Metal does not promise zeroes
  auto storage = std::make_shared<MetalStorage>(std::move(buffer), this, nullptr);
  storage->set_residency(queue_->residency());
  return storage;
}

std::shared_ptr<Storage> MetalBackend::wrap_host(const HostMemory& memory) {
  queue_->require_same_process("wrap");
  require_whole_pages(memory);
  const AutoreleaseScope pool;
  // The buffer keeps a copy of the block, and with it the owner, until it is gone itself.
  const std::shared_ptr<void> owner = memory.owner;
  auto buffer = NS::TransferPtr(queue_->device().newBuffer(
      memory.data, memory.byte_len, MTL::ResourceStorageModeShared, ^(void*, NS::UInteger) {
        static_cast<void>(owner);
      }));
  if (!buffer) {
    fail(ErrorCode::buffer_allocation, "wrap: byte_len: ", memory.byte_len, ", the ", name_,
         " device could not map the memory");
  }
  auto storage = std::make_shared<MetalStorage>(std::move(buffer), this, nullptr);
  storage->read_only = memory.read_only;
  return storage;
}

std::shared_ptr<Storage> MetalBackend::wrap_native(void* handle, std::shared_ptr<void> owner) {
  queue_->require_same_process("wrap_native");
  const AutoreleaseScope pool;
  auto buffer = NS::RetainPtr(static_cast<MTL::Buffer*>(handle));
  if (buffer->device() != &queue_->device()) {
    fail_argument("wrap_native: handle: the MTLBuffer belongs to another MTLDevice than ", name_);
  }
  return std::make_shared<MetalStorage>(std::move(buffer), this, std::move(owner));
}

std::unique_ptr<CommandStream> MetalBackend::command_stream(const DeviceOptions&) {
  return std::make_unique<MetalStream>(queue_);
}

std::shared_ptr<Library> MetalBackend::compile(const std::string& name, const std::string& source) {
  queue_->require_same_process("compile");
  const AutoreleaseScope pool;
  return std::make_shared<MetalLibrary>(
      name, compile_source(queue_->device(), name, source.c_str()), queue_, this);
}

void MetalBackend::add_native(Library&, const std::string& name, NativeKernel) {
  fail(ErrorCode::unsupported, "register_native: \"", name,
       "\": the metal device runs no native kernels");
}

void MetalBackend::register_sdpa(KernelRegistry& registry) {
  add_own_library(registry, [packaged = packaged_] { return packaged->open(); });
}

Plan MetalBackend::plan_sdpa(const SdpaProblem& problem, const DeviceOptions&) const {
  return plan_metal_sdpa(problem, facts_);
}

void MetalBackend::synchronize() {
  queue_->require_same_process("synchronize");
  queue_->in_flight()->wait_all();
}

void MetalBackend::shutdown() noexcept {
  if (queue_->same_process()) queue_->in_flight()->drain();
}

std::shared_ptr<Backend> create_metal_backend(std::string& reason, const std::string& directory) {
  const AutoreleaseScope pool;
  auto device = NS::TransferPtr(MTL::CreateSystemDefaultDevice());
  if (!device) {
    reason = "the system has no Metal device (MTLCreateSystemDefaultDevice gave none)";
    return nullptr;
  }
  return std::make_shared<MetalBackend>(std::move(device), directory);
}

std::shared_ptr<Backend> metal_backend(std::string& reason) {
  // Kept for good: completion handlers and Python's own exit may come later than static
  // destructors.
  static std::mutex* const mutex = new std::mutex;
  static std::shared_ptr<Backend>* const backend = new std::shared_ptr<Backend>;
  if (fork_generation() != 0) {
    reason = "Metal does not work in a child made by fork(); start the process anew (spawn)";
    return nullptr;
  }
  const std::lock_guard<std::mutex> lock(*mutex);
  if (*backend == nullptr) *backend = create_metal_backend(reason, library_directory());
  return *backend;
}

}  // namespace metal_sdpa
