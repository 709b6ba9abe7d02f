// Device handles: which backend, and memory through it.
#include "metal_sdpa/device.h"

#include <exception>
#include <mutex>
#include <utility>

#include "core/backend.h"
#include "core/layout.h"
#include "core/text.h"

namespace metal_sdpa {
namespace {

std::shared_ptr<Backend> require_metal() {
  std::string reason;
  std::shared_ptr<Backend> backend = metal_backend(reason);
  if (backend == nullptr) fail(ErrorCode::device_not_found, "Device: kind: metal: ", reason);
  return backend;
}

std::shared_ptr<Backend> find_backend(std::string_view kind) {
  if (kind == "cpu") return cpu_backend();
  if (kind == "metal") return require_metal();
  if (kind != "auto") {
    fail(ErrorCode::device_not_found, "Device: kind: got \"", kind,
         "\", takes \"auto\", \"metal\" or \"cpu\"");
  }
  std::string reason;
  std::shared_ptr<Backend> metal = metal_backend(reason);
  return metal != nullptr && metal->preferred() ? metal : cpu_backend();
}

Buffer checked_view(std::shared_ptr<Storage> storage, std::size_t byte_offset, std::size_t byte_len,
                    DType dtype, Shape shape) {
  return Buffer(std::move(storage), byte_offset, byte_len, dtype, std::move(shape));
}

void check_byte_len(const char* call, std::size_t byte_len, DType dtype, const Shape& shape) {
  const std::size_t needed = shape_byte_len(shape, dtype, call);
  if (byte_len == 0 || needed == 0) {
    fail_argument(call, ": byte_len: ", byte_len, " for shape ", shape, ", takes at least 1");
  }
  if (byte_len != needed) {
    fail_argument(call, ": byte_len: ", byte_len, ", but shape ", shape, " of ", dtype_name(dtype),
                  " is ", needed, " bytes");
  }
}

}  // namespace

const char* device_kind_name(DeviceKind kind) noexcept {
  return kind == DeviceKind::metal ? "metal" : "cpu";
}

Device::Device(std::string_view kind, DeviceOptions options)
    : backend_(find_backend(kind)), options_(std::move(options)) {
  backend_->check_options(options_);
}

DeviceKind Device::kind() const noexcept { return backend_->kind(); }
const std::string& Device::name() const noexcept { return backend_->name(); }
const DeviceLimits& Device::limits() const noexcept { return backend_->limits(); }
std::string Device::library_origin() const { return backend_->library_origin(); }
void Device::synchronize() const { backend_->synchronize(); }

Buffer Device::alloc_buffer(std::size_t byte_len, DType dtype, Shape shape) const {
  check_byte_len("alloc_buffer", byte_len, dtype, shape);
  if (byte_len > limits().max_buffer_bytes) {
    fail(ErrorCode::buffer_allocation, "alloc_buffer: byte_len: ", byte_len, ", the ", name(),
         " device takes at most ", limits().max_buffer_bytes);
  }
  return checked_view(backend_->allocate(byte_len), 0, byte_len, dtype, std::move(shape));
}

Buffer Device::empty(Shape shape, DType dtype) const {
  const std::size_t byte_len = shape_byte_len(shape, dtype, "empty");
  if (byte_len == 0) fail_argument("empty: shape: ", shape, " has no element");
  return alloc_buffer(byte_len, dtype, std::move(shape));
}

Buffer Device::wrap(const HostMemory& memory, DType dtype, Shape shape) const {
  if (memory.data == nullptr) fail_argument("wrap: data: got a null pointer");
  if (memory.byte_len == 0) fail_argument("wrap: byte_len: 0, takes at least 1");
  if (reinterpret_cast<std::uintptr_t>(memory.data) % dtype_size(dtype) != 0) {
    fail_argument("wrap: data: is not aligned to the ", dtype_size(dtype), " bytes of a ",
                  dtype_name(dtype));
  }
  return checked_view(backend_->wrap_host(memory), 0, memory.byte_len, dtype, std::move(shape));
}

Buffer Device::wrap_native(void* handle, std::size_t byte_offset, std::size_t byte_len, DType dtype,
                           Shape shape, std::shared_ptr<void> owner) const {
  if (handle == nullptr) fail_argument("wrap_native: handle: got a null pointer");
  if (byte_offset % dtype_size(dtype) != 0) {
    fail_argument("wrap_native: byte_offset: ", byte_offset, " is no multiple of the ",
                  dtype_size(dtype), " bytes of a ", dtype_name(dtype));
  }
  return checked_view(backend_->wrap_native(handle, std::move(owner)), byte_offset, byte_len, dtype,
                      std::move(shape));
}

CommandEncoder Device::command_encoder() const { return CommandEncoder(*this); }

void shutdown() noexcept {
  try {
    cpu_backend()->shutdown();
    std::string reason;
    const std::shared_ptr<Backend> metal = metal_backend(reason);
    if (metal != nullptr) metal->shutdown();
  } catch (const std::exception&) {
    // A device that could not be made, be it for want of memory, has no work and no threads.
  }
}

}  // namespace metal_sdpa
