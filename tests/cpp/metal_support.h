// What the tests of the Metal device share: small MSL kernels, dispatches without a registry.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/backend.h"
#include "metal/create.h"
#include "support.h"

namespace metal_sdpa::test {

/// add: y[i] = x[i] + n. chain: y[i] = 2 x[i] + 1. tagged: a function of its constants.
inline constexpr const char* kTestKernels = R"msl(
#include <metal_stdlib>
using namespace metal;

constant bool as_negative [[function_constant(0)]];
constant int bias [[function_constant(1)]];
constant uint factor [[function_constant(2)]];
constant float fraction [[function_constant(3)]];

kernel void tagged(device float* y [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  const float value = float(bias) + float(factor) * 1000.0f + fraction;
  y[i] = as_negative ? -value : value;
}

kernel void add(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
                constant float& n [[buffer(2)]], uint i [[thread_position_in_grid]]) {
  y[i] = x[i] + n;
}

kernel void chain(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
                  uint i [[thread_position_in_grid]]) {
  y[i] = 2.0f * x[i] + 1.0f;
}

kernel void place(device uint* y [[buffer(0)]], uint3 group [[threadgroup_position_in_grid]],
                  uint3 groups [[threadgroups_per_grid]], uint lane [[thread_index_in_threadgroup]],
                  uint3 size [[threads_per_threadgroup]]) {
  const uint index = (group.z * groups.y + group.y) * groups.x + group.x;
  y[index * size.x * size.y * size.z + lane] = index * 1000 + lane;
}

kernel void reversed(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
                     threadgroup float* shared [[threadgroup(0)]],
                     uint i [[thread_index_in_threadgroup]],
                     uint n [[threads_per_threadgroup]]) {
  shared[i] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = shared[n - 1 - i];
}
)msl";

/// A Metal device of its own, so that everything it made goes with it.
inline std::shared_ptr<Backend> own_metal_device(const std::string& directory = "/nowhere") {
  std::string reason;
  std::shared_ptr<Backend> backend = create_metal_backend(reason, directory);
  INFO(reason);
  REQUIRE(backend != nullptr);
  return backend;
}

inline Buffer float_buffer(Backend& backend, std::size_t count, float first = 0) {
  Buffer buffer(backend.allocate(count * sizeof(float)), 0, count * sizeof(float), DType::f32,
                {static_cast<std::int64_t>(count)});
  for (std::size_t i = 0; i < count; ++i) {
    buffer.host<float>()[i] = first + static_cast<float>(i);
  }
  return buffer;
}

inline DispatchBinding bound(std::uint32_t index, const Buffer& buffer) {
  DispatchBinding binding;
  binding.index = index;
  binding.storage = buffer.storage();
  binding.byte_offset = buffer.byte_offset();
  binding.byte_len = buffer.byte_len();
  return binding;
}

template <typename T>
InlineBytes inline_bytes(const T& value) {
  const auto* first = reinterpret_cast<const std::byte*>(&value);
  return InlineBytes(first, first + sizeof(value));
}

template <typename T>
DispatchBinding bound_value(std::uint32_t index, const T& value) {
  DispatchBinding binding;
  binding.index = index;
  binding.bytes = inline_bytes(value);
  binding.byte_len = binding.bytes.size();
  return binding;
}

/// y = x + n over `threads` elements, as one threadgroup.
inline Dispatch add_dispatch(std::shared_ptr<Pipeline> add, const Buffer& x, const Buffer& y,
                             float n, std::uint32_t threads) {
  Dispatch dispatch;
  dispatch.pipeline = std::move(add);
  dispatch.bindings = {bound(0, x), bound(1, y), bound_value(2, n)};
  dispatch.threadgroup_size = {threads, 1, 1};
  return dispatch;
}

}  // namespace metal_sdpa::test
