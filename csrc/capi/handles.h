// What is behind the opaque handles, and checks of what callers give for them.
#pragma once

#include <memory>

#include "capi/problem.h"
#include "capi/structs.h"
#include "metal_sdpa/buffer.h"
#include "metal_sdpa/c.h"
#include "metal_sdpa/device.h"
#include "metal_sdpa/encoder.h"
#include "metal_sdpa/prepared.h"

struct metal_sdpa_device {
  metal_sdpa::Device device;
};

struct metal_sdpa_buffer {
  metal_sdpa::Buffer buffer;
};

struct metal_sdpa_encoder {
  metal_sdpa::CommandEncoder encoder;
};

struct metal_sdpa_prepared {
  metal_sdpa::PreparedSdpa prepared;
  metal_sdpa::capi::OptionalOperands used;
};

namespace metal_sdpa::capi {

inline const Device& device_of(const char* call, const metal_sdpa_device* handle) {
  require_given(call, "device", handle);
  return handle->device;
}

/// Of an operand; NULL is the empty Buffer, which is fine where the tensor has no element.
inline Buffer operand_of(const metal_sdpa_buffer* handle) {
  return handle == nullptr ? Buffer() : handle->buffer;
}

inline CommandEncoder& encoder_of(const char* call, metal_sdpa_encoder* handle) {
  require_given(call, "encoder", handle);
  return handle->encoder;
}

inline const metal_sdpa_prepared& prepared_of(const char* call, const metal_sdpa_prepared* handle) {
  require_given(call, "prepared", handle);
  return *handle;
}

/// A handle's own Buffer: elements alone matter in C, and a shape costs memory for each copy.
inline Buffer without_shape(const Buffer& buffer) {
  return Buffer(buffer.storage(), buffer.byte_offset(), buffer.byte_len(), buffer.dtype(), {});
}

/// Checks a caller's place for a handle, and leaves NULL there until there is one.
template <typename Handle>
void clear_place(const char* call, const char* name, Handle** place) {
  require_given(call, name, place);
  *place = nullptr;
}

inline DType dtype_of(const char* call, const char* name, metal_sdpa_dtype dtype) {
  if (dtype < METAL_SDPA_F32 || dtype > METAL_SDPA_I64) {
    fail(ErrorCode::unsupported_dtype, call, ": ", name, ": ", dtype,
         ", takes METAL_SDPA_F32 (0) to METAL_SDPA_I64 (7)");
  }
  return static_cast<DType>(dtype);
}

static_assert(static_cast<metal_sdpa_dtype>(DType::f32) == METAL_SDPA_F32 &&
              static_cast<metal_sdpa_dtype>(DType::f16) == METAL_SDPA_F16 &&
              static_cast<metal_sdpa_dtype>(DType::bf16) == METAL_SDPA_BF16 &&
              static_cast<metal_sdpa_dtype>(DType::u8) == METAL_SDPA_U8 &&
              static_cast<metal_sdpa_dtype>(DType::u16) == METAL_SDPA_U16 &&
              static_cast<metal_sdpa_dtype>(DType::u32) == METAL_SDPA_U32 &&
              static_cast<metal_sdpa_dtype>(DType::i32) == METAL_SDPA_I32 &&
              static_cast<metal_sdpa_dtype>(DType::i64) == METAL_SDPA_I64);

}  // namespace metal_sdpa::capi
