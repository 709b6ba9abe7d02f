// Buffers, and memory of the caller, for C.
#include "metal_sdpa/buffer.h"

#include <utility>

#include "capi/guard.h"
#include "capi/handles.h"

namespace metal_sdpa::capi {
namespace {

/// Tells the caller when nothing refers to its memory any more, once the wrap is done.
class CallerMemory {
 public:
  CallerMemory(metal_sdpa_release_callback release, void* context)
      : release_(release), context_(context) {}
  CallerMemory(const CallerMemory&) = delete;
  CallerMemory& operator=(const CallerMemory&) = delete;
  ~CallerMemory() {
    if (wrapped_ && release_ != nullptr) release_(context_);
  }

  void set_wrapped() noexcept { wrapped_ = true; }

 private:
  metal_sdpa_release_callback release_;
  void* context_;
  bool wrapped_ = false;
};

Shape whole_elements(const char* call, DType dtype, std::size_t byte_len) {
  const std::size_t size = dtype_size(dtype);
  if (byte_len == 0 || byte_len % size != 0) {
    fail_argument(call, ": byte_len: ", byte_len, ", takes a multiple of the ", size,
                  " bytes of a ", dtype_name(dtype));
  }
  return {static_cast<std::int64_t>(byte_len / size)};
}

/// `wrap(shape, owner)` makes the Buffer; the callback belongs to it from the moment that all of
/// the call is done.
template <typename Wrap>
metal_sdpa_buffer* wrap_memory(metal_sdpa_release_callback release, void* context,
                               const Wrap& wrap) {
  const auto owner = std::make_shared<CallerMemory>(release, context);
  auto handle = std::make_unique<metal_sdpa_buffer>();
  handle->buffer = without_shape(wrap(owner));
  owner->set_wrapped();
  return handle.release();
}

}  // namespace
}  // namespace metal_sdpa::capi

using namespace metal_sdpa;
using namespace metal_sdpa::capi;

metal_sdpa_status metal_sdpa_buffer_allocate(const metal_sdpa_device* device,
                                             metal_sdpa_dtype dtype, int64_t elements,
                                             metal_sdpa_buffer** buffer) {
  constexpr const char* kCall = "buffer_allocate";
  return guarded([&] {
    clear_place(kCall, "buffer", buffer);
    const Device& owner = device_of(kCall, device);
    const DType element = dtype_of(kCall, "dtype", dtype);
    if (elements < 1) fail_argument(kCall, ": elements: ", elements, ", takes 1 or more");
    *buffer = new metal_sdpa_buffer{without_shape(owner.empty({elements}, element))};
  });
}

metal_sdpa_status metal_sdpa_buffer_wrap(const metal_sdpa_device* device, metal_sdpa_dtype dtype,
                                         void* data, size_t byte_len, int32_t read_only,
                                         metal_sdpa_release_callback release, void* context,
                                         metal_sdpa_buffer** buffer) {
  constexpr const char* kCall = "buffer_wrap";
  return guarded([&] {
    clear_place(kCall, "buffer", buffer);
    const Device& by = device_of(kCall, device);
    const DType element = dtype_of(kCall, "dtype", dtype);
    const Shape shape = whole_elements(kCall, element, byte_len);
    *buffer = wrap_memory(release, context, [&](std::shared_ptr<void> owner) {
      return by.wrap({data, byte_len, read_only != 0, std::move(owner)}, element, shape);
    });
  });
}

metal_sdpa_status metal_sdpa_buffer_wrap_native(const metal_sdpa_device* device,
                                                metal_sdpa_dtype dtype, void* handle,
                                                size_t byte_offset, size_t byte_len,
                                                metal_sdpa_release_callback release, void* context,
                                                metal_sdpa_buffer** buffer) {
  constexpr const char* kCall = "buffer_wrap_native";
  return guarded([&] {
    clear_place(kCall, "buffer", buffer);
    const Device& by = device_of(kCall, device);
    const DType element = dtype_of(kCall, "dtype", dtype);
    const Shape shape = whole_elements(kCall, element, byte_len);
    *buffer = wrap_memory(release, context, [&](std::shared_ptr<void> owner) {
      return by.wrap_native(handle, byte_offset, byte_len, element, shape, std::move(owner));
    });
  });
}

metal_sdpa_status metal_sdpa_buffer_slice(const metal_sdpa_buffer* buffer, size_t byte_offset,
                                          size_t elements, metal_sdpa_buffer** slice) {
  constexpr const char* kCall = "buffer_slice";
  return guarded([&] {
    clear_place(kCall, "slice", slice);
    require_given(kCall, "buffer", buffer);
    *slice = new metal_sdpa_buffer{without_shape(buffer->buffer.slice_view(byte_offset, elements))};
  });
}

void metal_sdpa_buffer_release(metal_sdpa_buffer* buffer) { delete buffer; }

metal_sdpa_status metal_sdpa_buffer_describe(const metal_sdpa_buffer* buffer,
                                             metal_sdpa_buffer_info* info, size_t struct_size) {
  constexpr const char* kCall = "buffer_describe";
  return guarded([&] {
    require_given(kCall, "buffer", buffer);
    const Buffer& described = buffer->buffer;
    metal_sdpa_buffer_info filled{};
    filled.data = described.data();
    filled.byte_len = described.byte_len();
    filled.dtype = static_cast<metal_sdpa_dtype>(described.dtype());
    filled.read_only = described.read_only() ? 1 : 0;
    fill_struct(kCall, "info", filled, info, struct_size);
  });
}
