// The DLPack 1.x ABI, as far as this module speaks it. nanobind has the tensor itself.
#pragma once

#include <nanobind/ndarray.h>

#include <cstdint>

namespace metal_sdpa::python {

using DLTensor = nanobind::dlpack::dltensor;
using DLDataType = nanobind::dlpack::dtype;
using DLTypeCode = nanobind::dlpack::dtype_code;

inline constexpr std::int32_t kDLCpu = 1;
inline constexpr std::int32_t kDLMetal = 8;

struct DLVersion {
  std::uint32_t major = 1;
  std::uint32_t minor = 1;
};

/// Before DLPack 1.0; capsules named "dltensor".
struct DLManagedTensor {
  DLTensor tensor;
  void* context = nullptr;
  void (*deleter)(DLManagedTensor* self) = nullptr;
};

inline constexpr std::uint64_t kDLReadOnly = 1;
inline constexpr std::uint64_t kDLCopied = 2;

/// From DLPack 1.0 on; capsules named "dltensor_versioned".
struct DLManagedTensorVersioned {
  DLVersion version;
  void* context = nullptr;
  void (*deleter)(DLManagedTensorVersioned* self) = nullptr;
  std::uint64_t flags = 0;
  DLTensor tensor;
};

/// C functions of a framework, found at TYPE.__dlpack_c_exchange_api__ (DLPack 1.2). They return 0,
/// or -1 with the Python error set.
struct DLExchangeApi {
  DLVersion version;
  DLExchangeApi* previous = nullptr;
  int (*allocate)(DLTensor* prototype, DLManagedTensorVersioned** out, void* error_context,
                  void (*set_error)(void* context, const char* kind, const char* text)) = nullptr;
  int (*managed_from_object)(void* object, DLManagedTensorVersioned** out) = nullptr;
  int (*object_from_managed)(DLManagedTensorVersioned* tensor, void** out_object) = nullptr;
  int (*tensor_from_object)(void* object, DLTensor* out) = nullptr;
  int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** out) = nullptr;
};

}  // namespace metal_sdpa::python
