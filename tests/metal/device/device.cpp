// MTLDevice and MTLBuffer.
#include <Block.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "command.hpp"
#include "control.hpp"
#include "fiber.hpp"
#include "objects.hpp"

namespace software_metal {
namespace {

#ifdef SOFTWARE_METAL_ASAN
constexpr std::size_t kMargin = 0;  // AddressSanitizer guards the exact end
#else
constexpr std::size_t kMargin = 64;
#endif
constexpr unsigned char kMarginByte = 0xa5;
constexpr const char* kMetallibMagic = "software-metallib 1";

std::mutex& device_mutex() {
  static std::mutex& mutex = *new std::mutex;
  return mutex;
}
Device* shared_device = nullptr;

std::size_t page_size() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

// ----- Methods of MTLDevice

struct DeviceMethods : Device {
  Object* get_name() { return String::make("Software Metal"); }
  unsigned long registry_id() { return 0x50f7; }
  bool yes() { return true; }
  bool no() { return false; }

  bool supports_family(long family) {
    bool apple = family >= MTL::GPUFamilyApple1 && family <= MTL::GPUFamilyApple8;
    bool common = family >= MTL::GPUFamilyCommon1 && family <= MTL::GPUFamilyCommon3;
    return apple || common || family == MTL::GPUFamilyMac2 || family == MTL::GPUFamilyMetal3;
  }
  unsigned long max_threadgroup_memory() { return kMaxThreadgroupMemory; }
  unsigned long max_buffer_length() { return kMaxBufferLength; }
  unsigned long working_set() { return 8ul << 30; }
  unsigned long allocated_size() { return 0; }
  MTL::Size max_threads_per_threadgroup() { return {kMaxThreads, kMaxThreads, kMaxThreads}; }
  long argument_buffers_tier() { return MTL::ArgumentBuffersTier2; }

  Object* new_buffer(unsigned long length, unsigned long options) {
    if (!check_length("newBufferWithLength", length) || take_allocation_fault()) return nullptr;
    auto* buffer = new Buffer(this);
    if (buffer->allocate(length, options)) return buffer;
    buffer->release();
    return nullptr;
  }

  Object* new_buffer_copy(const void* bytes, unsigned long length, unsigned long options) {
    if (bytes == nullptr) {
      violation("newBufferWithBytes: pointer is null");
      return nullptr;
    }
    auto* buffer = static_cast<Buffer*>(new_buffer(length, options));
    if (buffer != nullptr) std::memcpy(buffer->contents, bytes, length);
    return buffer;
  }

  Object* new_buffer_no_copy(void* bytes, unsigned long length, unsigned long options,
                             const void* deallocator) {
    if (!check_length("newBufferWithBytesNoCopy", length)) return nullptr;
    std::size_t page = page_size();
    if (bytes == nullptr || reinterpret_cast<std::uintptr_t>(bytes) % page != 0) {
      violation("newBufferWithBytesNoCopy: pointer %p is not page aligned", bytes);
      return nullptr;
    }
    if (length % page != 0) {
      violation("newBufferWithBytesNoCopy: length %lu is not a multiple of the page size %zu",
                length, page);
      return nullptr;
    }
    if (take_allocation_fault()) return nullptr;
    auto* buffer = new Buffer(this);
    buffer->wrap(bytes, length, options, deallocator);
    return buffer;
  }

  // Metal gives nil above the limit and asserts on zero.
  static bool check_length(const char* call, unsigned long length) {
    if (length == 0) violation("%s: length is 0", call);
    return length != 0 && length <= kMaxBufferLength;
  }

  Object* new_library_source(String* source, CompileOptions* options, Error** error) {
    if (source == nullptr) {
      violation("newLibraryWithSource: source is nil");
      return nullptr;
    }
    return new_library(this, source->text, options, error);
  }

  Object* new_library_url(Url* url, Error** error) {
    return new_library_path(url != nullptr ? url->path : "", error);
  }
  Object* new_library_file(String* path, Error** error) {
    return new_library_path(text_of(path), error);
  }
  Object* new_default_library() { return nullptr; }

  // A .metallib of the software device is text: a line with the magic, then MSL source.
  Object* new_library_path(const std::string& path, Error** error) {
    std::ifstream file(path, std::ios::binary);
    std::string first;
    if (!file || !std::getline(file, first)) {
      set_error(error, "MTLLibraryErrorDomain", MTL::LibraryErrorFileNotFound,
                "library not found: " + path);
      return nullptr;
    }
    if (first != kMetallibMagic) {
      set_error(error, "MTLLibraryErrorDomain", MTL::LibraryErrorInternal,
                "not a library of the software device: " + path);
      return nullptr;
    }
    std::ostringstream text;
    text << file.rdbuf();
    return new_library(this, text.str(), nullptr, error);
  }

  Object* new_queue() { return new CommandQueue(this, kMaxCommandBuffers); }
  Object* new_queue_with_max(unsigned long count) { return new CommandQueue(this, count); }

  Object* new_fence() { return new Fence; }

  Object* pipeline_of_function(Function* function, Error** error) {
    return new_pipeline(function, 0, error);
  }
  Object* pipeline_of_function_reflected(Function* function, unsigned long, Object** reflection,
                                         Error** error) {
    if (reflection != nullptr) *reflection = nullptr;
    return new_pipeline(function, 0, error);
  }
  Object* pipeline_of_descriptor(PipelineDescriptor* descriptor, unsigned long,
                                 Object** reflection, Error** error) {
    if (reflection != nullptr) *reflection = nullptr;
    Pipeline* made = new_pipeline(descriptor->function.get(), descriptor->max_threads, error);
    if (made == nullptr) return nullptr;
    made->label = descriptor->label;
    made->whole_simdgroups = descriptor->whole_simdgroups;
    return made;
  }

  Object* new_residency_set(ResidencySetDescriptor* descriptor, Error**) {
    auto* set = new ResidencySet(this);
    if (descriptor != nullptr) set->label = descriptor->label;
    return set;
  }
};

// ----- Methods of MTLBuffer

struct BufferMethods : Buffer {
  void* get_contents() {
    bool is_private = ((options >> 4) & 15) == MTL::StorageModePrivate;
    return is_private ? nullptr : contents;
  }
  unsigned long get_length() { return length; }
  unsigned long address() { return reinterpret_cast<unsigned long>(contents); }
  unsigned long allocated_size() { return length; }
  unsigned long storage_mode() { return (options >> 4) & 15; }
  unsigned long get_options() { return options; }
  unsigned long hazard_mode() { return (options >> 8) & 3; }
  Object* get_device() { return device.get(); }
  Object* heap() { return nullptr; }
  void did_modify(NS::Range range) {
    if (range.location + range.length > length) violation("didModifyRange past the end");
  }
  unsigned long purgeable(unsigned long) { return MTL::PurgeableStateNonVolatile; }
};

}  // namespace

// ----- Device

Device* Device::create() {
  if (is_device_absent()) return nullptr;
  std::lock_guard<std::mutex> lock(device_mutex());
  if (shared_device != nullptr) return static_cast<Device*>(shared_device->retain());
  shared_device = new Device;
  return shared_device;
}

Device::~Device() {
  std::lock_guard<std::mutex> lock(device_mutex());
  if (shared_device == this) shared_device = nullptr;
}

void register_device_classes(Registry& registry) {
  using M = DeviceMethods;
  Builder<Device>(registry)
      .method<&M::get_name>("name")
      .method<&M::registry_id>("registryID")
      .method<&M::supports_family>("supportsFamily:")
      .method<&M::yes>("hasUnifiedMemory")
      .method<&M::no>("isLowPower")
      .method<&M::no>("isHeadless")
      .method<&M::no>("isRemovable")
      .method<&M::yes>("supportsDynamicLibraries")
      .method<&M::max_threadgroup_memory>("maxThreadgroupMemoryLength")
      .method<&M::max_buffer_length>("maxBufferLength")
      .method<&M::working_set>("recommendedMaxWorkingSetSize")
      .method<&M::allocated_size>("currentAllocatedSize")
      .method<&M::max_threads_per_threadgroup>("maxThreadsPerThreadgroup")
      .method<&M::argument_buffers_tier>("argumentBuffersSupport")
      .method<&M::new_buffer>("newBufferWithLength:options:")
      .method<&M::new_buffer_copy>("newBufferWithBytes:length:options:")
      .method<&M::new_buffer_no_copy>("newBufferWithBytesNoCopy:length:options:deallocator:")
      .method<&M::new_library_source>("newLibraryWithSource:options:error:")
      .method<&M::new_library_url>("newLibraryWithURL:error:")
      .method<&M::new_library_file>("newLibraryWithFile:error:")
      .method<&M::new_default_library>("newDefaultLibrary")
      .method<&M::new_queue>("newCommandQueue")
      .method<&M::new_queue_with_max>("newCommandQueueWithMaxCommandBufferCount:")
      .method<&M::new_fence>("newFence")
      .method<&M::pipeline_of_function>("newComputePipelineStateWithFunction:error:")
      .method<&M::pipeline_of_function_reflected>(
          "newComputePipelineStateWithFunction:options:reflection:error:")
      .method<&M::pipeline_of_descriptor>(
          "newComputePipelineStateWithDescriptor:options:reflection:error:")
      .method<&M::new_residency_set>("newResidencySetWithDescriptor:error:");
  Builder<Fence>(registry)
      .method<&Labelled::get_label>("label")
      .method<&Labelled::set_label>("setLabel:");
  using B = BufferMethods;
  Builder<Buffer>(registry)
      .method<&B::get_contents>("contents")
      .method<&B::get_length>("length")
      .method<&B::address>("gpuAddress")
      .method<&B::allocated_size>("allocatedSize")
      .method<&B::storage_mode>("storageMode")
      .method<&B::hazard_mode>("hazardTrackingMode")
      .method<&B::get_options>("resourceOptions")
      .method<&B::get_device>("device")
      .method<&B::heap>("heap")
      .method<&B::did_modify>("didModifyRange:")
      .method<&B::purgeable>("setPurgeableState:")
      .method<&Labelled::get_label>("label")
      .method<&Labelled::set_label>("setLabel:");
}

// ----- Buffer

bool Buffer::allocate(unsigned long bytes, unsigned long resource_options) {
  void* memory = nullptr;
  if (posix_memalign(&memory, page_size(), bytes + kMargin) != 0) return false;
  contents = static_cast<unsigned char*>(memory);
  std::memset(contents, 0, bytes);
  std::memset(contents + bytes, kMarginByte, kMargin);
  length = bytes;
  options = resource_options;
  owns_memory_ = true;
  return true;
}

void Buffer::wrap(void* memory, unsigned long bytes, unsigned long resource_options,
                  const void* block) {
  contents = static_cast<unsigned char*>(memory);
  length = bytes;
  options = resource_options;
  if (block != nullptr) deallocator_ = _Block_copy(block);
}

Buffer::~Buffer() {
  bool in_use = uses_in_flight->load() != 0;
  if (in_use) {
    violation("%s deallocated while a command buffer that does not retain it is in flight",
              title().c_str());
  }
  if (deallocator_ != nullptr) {
    auto block = reinterpret_cast<void (^)(void*, unsigned long)>(const_cast<void*>(deallocator_));
    block(contents, length);
    _Block_release(deallocator_);
  }
  if (!owns_memory_) return;
  check_margin();
  if (!in_use) std::free(contents);  // else the command buffer still writes there
}

void Buffer::check_margin() const {
  for (std::size_t i = 0; i < kMargin; ++i) {
    if (contents[length + i] == kMarginByte) continue;
    violation("a write past the end of %s, %lu bytes long, at byte %zu", title().c_str(), length,
              length + i);
    return;
  }
}

}  // namespace software_metal

// ----- C interface

extern "C" {

SOFTWARE_METAL_EXPORT software_metal::Object* MTLCreateSystemDefaultDevice() {
  return software_metal::Device::create();
}

SOFTWARE_METAL_EXPORT software_metal::Object* MTLCopyAllDevices() {
  auto* array = new software_metal::Array;
  if (software_metal::Device* device = software_metal::Device::create()) {
    array->items.emplace_back(device);
    device->release();
  }
  return array;
}

SOFTWARE_METAL_EXPORT software_metal::Object* MTLCopyAllDevicesWithObserver(
    software_metal::Object** observer, const void*) {
  if (observer != nullptr) *observer = nullptr;
  return MTLCopyAllDevices();
}

SOFTWARE_METAL_EXPORT void MTLRemoveDeviceObserver(software_metal::Object*) {}

}  // extern "C"
