// Bindings of a dispatch that is made without a plan.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/backend.h"

namespace metal_sdpa {

inline DispatchBinding memory_binding(std::uint32_t index, const Buffer& buffer) {
  DispatchBinding binding;
  binding.index = index;
  binding.storage = buffer.storage();
  binding.byte_offset = buffer.byte_offset();
  binding.byte_len = buffer.byte_len();
  return binding;
}

/// An argument block, inline.
template <typename Args>
DispatchBinding args_binding(std::uint32_t index, const Args& args) {
  DispatchBinding binding;
  binding.index = index;
  binding.byte_len = sizeof(args);
  binding.bytes.resize(sizeof(args));
  std::memcpy(binding.bytes.data(), &args, sizeof(args));
  return binding;
}

}  // namespace metal_sdpa
