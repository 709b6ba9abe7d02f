// Element types of buffers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "metal_sdpa/export.h"

namespace metal_sdpa {

enum class DType : std::uint8_t {
  f32,   ///< IEEE 754 binary32
  f16,   ///< IEEE 754 binary16
  bf16,  ///< bfloat16: the upper half of a binary32
  u8,
  u16,
  u32,
  i32,
  i64,
};

/// Bytes of one element: 4, 2, 2, 1, 2, 4, 4, 8.
constexpr std::size_t dtype_size(DType dtype) noexcept {
  if (dtype == DType::u8) return 1;
  if (dtype == DType::i64) return 8;
  return dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::u16 ? 2 : 4;
}

/// "f32", "f16", "bf16", "u8", "u16", "u32", "i32" or "i64".
METAL_SDPA_API const char* dtype_name(DType dtype) noexcept;

}  // namespace metal_sdpa
