// Fields of a DLTensor become those of an Array.
#include "dlpack_tensor.h"

#include <algorithm>

#include "errors.h"

namespace metal_sdpa::python {
namespace {

// User address space of the supported processors.
constexpr std::int64_t kMostBytes = std::int64_t{1} << 47;

bool find_dtype(const DLDataType& type, const TakenDTypes& dtypes, Array& array) {
  if (type.lanes != 1) return false;
  DType& dtype = array.dtype;
  switch (static_cast<DLTypeCode>(type.code)) {
    case DLTypeCode::Float:
      dtype = type.bits == 32 ? DType::f32 : DType::f16;
      return type.bits == 32 || type.bits == 16;
    case DLTypeCode::Bfloat:
      dtype = DType::bf16;
      return type.bits == 16;
    case DLTypeCode::UInt:
      dtype = type.bits == 32 ? DType::u32 : type.bits == 16 ? DType::u16 : DType::u8;
      return type.bits == 32 || type.bits == 16 || type.bits == 8;
    case DLTypeCode::Int:
      dtype = type.bits == 64 ? DType::i64 : DType::i32;
      return type.bits == 64 || type.bits == 32;
    case DLTypeCode::Bool:
      dtype = DType::u8;
      array.boolean = true;
      return type.bits == 8 && dtypes.booleans;
    default:
      return false;
  }
}

const char* device_name(std::int64_t device_type) {
  switch (device_type) {
    case 2:
    case 13:
      return "CUDA";
    case 3:
      return "CUDA host";
    case 10:
    case 11:
      return "ROCm";
    case 14:
      return "oneAPI";
    default:
      return "another";
  }
}

/// The object's own name of its dtype, or the fields where it has none.
std::string dtype_text(PyObject* object, const DLDataType& type) {
  const std::string fields =
      text_of("of DLPack code ", type.code, ", ", type.bits, " bits and ", type.lanes, " lanes");
  if (type.lanes != 1) return fields;
  const std::string own = attribute_text(object, "dtype");
  return own.empty() ? fields : own;
}

void copy_shape(Argument argument, const DLTensor& tensor, Array& array) {
  if (tensor.ndim < 0 || tensor.ndim > Array::kMaxDims) {
    fail_argument(argument.call, ": ", argument.name, ": ", tensor.ndim,
                  " dimensions, takes at most ", Array::kMaxDims);
  }
  if (tensor.ndim > 0 && tensor.shape == nullptr) {
    fail_argument(argument.call, ": ", argument.name, ": its DLPack tensor has no shape");
  }
  array.ndim = tensor.ndim;
  std::copy_n(tensor.shape, tensor.ndim, array.shape);
}

/// No negative extent, and no more bytes than 64 bits count.
void check_shape(Argument argument, Array& array) {
  auto bytes = static_cast<std::int64_t>(dtype_size(array.dtype));
  for (int i = 0; i < array.ndim; ++i) {
    const std::int64_t extent = array.shape[i];
    if (extent < 0) {
      fail_argument(argument.call, ": ", argument.name, ": shape ", array.shape_list(),
                    " has a negative extent");
    }
    array.empty = array.empty || extent == 0;
    // An extent of 0 bounds nothing: the product of the others must fit all the same.
    if (!__builtin_mul_overflow(bytes, std::max<std::int64_t>(extent, 1), &bytes)) continue;
    fail_argument(argument.call, ": ", argument.name, ": shape ", array.shape_list(),
                  " has more bytes than 64 bits count");
  }
}

void copy_strides(const DLTensor& tensor, Array& array) {
  if (tensor.strides != nullptr) {
    std::copy_n(tensor.strides, tensor.ndim, array.strides);
    return;
  }
  std::int64_t stride = 1;  // the product of the shape fits: check_shape
  for (int i = tensor.ndim - 1; i >= 0; --i) {
    array.strides[i] = stride;
    stride *= array.shape[i];
  }
}

void check_byte_offset(Argument argument, std::uint64_t byte_offset) {
  if (byte_offset <= static_cast<std::uint64_t>(kMostBytes)) return;
  fail_argument(argument.call, ": ", argument.name, ": byte_offset ", byte_offset,
                ", but memory has ", kMostBytes, " bytes at most");
}

/// Whether the bytes that the strides reach, before and after the first element, may be memory.
bool reaches_memory(const Array& array) {
  std::int64_t ends[2] = {0, 0};  // elements
  for (int i = 0; i < array.ndim; ++i) {
    std::int64_t distance = 0;
    if (__builtin_mul_overflow(array.shape[i] - 1, array.strides[i], &distance)) return false;
    std::int64_t& end = ends[distance < 0 ? 0 : 1];
    if (__builtin_add_overflow(end, distance, &end)) return false;
  }
  const std::int64_t most = kMostBytes / static_cast<std::int64_t>(dtype_size(array.dtype));
  return ends[0] >= -most && ends[1] < most;
}

/// Elements stand where elements can.
void check_memory(Argument argument, const Array& array) {
  if (array.data == nullptr) {
    fail_argument(argument.call, ": ", argument.name, ": the array has no memory");
  }
  if (!reaches_memory(array)) {
    fail_argument(argument.call, ": ", argument.name,
                  ": its strides reach further than memory, which has ", kMostBytes,
                  " bytes at most");
  }
  if (array.on_metal) return;  // `data` is no address; the device checks the offset
  const std::uintptr_t size = dtype_size(array.dtype);
  if ((reinterpret_cast<std::uintptr_t>(array.data) & (size - 1)) == 0) return;
  fail_argument(argument.call, ": ", argument.name, ": data is not aligned to the ", size,
                " bytes of an element");
}

}  // namespace

void check_device_type(Argument argument, std::int64_t device_type) {
  // Pinned host memory is host memory.
  if (device_type == kDLCpu || device_type == kDLMetal || device_type == 3 || device_type == 11) {
    return;
  }
  fail(ErrorCode::unsupported, argument.call, ": ", argument.name, ": memory of a ",
       device_name(device_type), " device (DLPack device type ", device_type,
       "), takes host memory or Metal");
}

void describe_tensor(Argument argument, const DLTensor& tensor, PyObject* object,
                     const TakenDTypes& dtypes, Array& array) {
  check_device_type(argument, tensor.device.device_type);
  if (tensor.device.device_id < 0) {
    fail_argument(argument.call, ": ", argument.name, ": device id ", tensor.device.device_id,
                  ", takes 0 and more");
  }
  if (!find_dtype(tensor.dtype, dtypes, array)) {
    fail_dtype(argument, dtype_text(object, tensor.dtype), dtypes.text);
  }
  copy_shape(argument, tensor, array);
  check_shape(argument, array);
  copy_strides(tensor, array);
  check_byte_offset(argument, tensor.byte_offset);
  array.on_metal = tensor.device.device_type == kDLMetal;
  array.byte_offset = array.on_metal ? tensor.byte_offset : 0;
  const std::uint64_t skipped = array.on_metal ? 0 : tensor.byte_offset;
  array.data = tensor.data == nullptr ? nullptr : static_cast<char*>(tensor.data) + skipped;
  if (!array.empty) check_memory(argument, array);
}

}  // namespace metal_sdpa::python
