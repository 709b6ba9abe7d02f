// Reads and checks what a launch of the straightforward kernel was given.
#include "cpu/sdpa_packed.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "core/packed_launch.h"
#include "cpu/sdpa.h"
#include "shaders/sdpa_params.h"

namespace metal_sdpa::cpu {
namespace {

/// A packed problem in the terms of the general one.
SdpaArgs args_from_params(const SdpaParamsBlock& params) {
  SdpaArgs args{};
  const auto packed = [&params](sdpa_i64 heads, sdpa_i64 rows) {
    const sdpa_i64 width = params.head_dim;
    return SdpaStrides{heads * rows * width, rows * width, width};
  };
  args.q_stride = packed(params.n_heads, params.seq_len);
  args.k_stride = packed(params.n_kv_heads, params.kv_capacity);
  args.v_stride = args.k_stride;
  args.out_stride = args.q_stride;
  args.sequence = {static_cast<sdpa_i64>(params.kv_seq_len) - params.seq_len,
                   params.kv_seq_len,
                   0,
                   params.seq_len,
                   0,
                   0};
  args.lse_head = params.seq_len;
  args.lse_batch = static_cast<sdpa_i64>(params.n_heads) * params.seq_len;
  args.n_heads = params.n_heads;
  args.n_kv_heads = params.n_kv_heads;
  args.seq_len = params.seq_len;
  args.head_dim = params.head_dim;
  args.value_dim = params.head_dim;
  args.scale = params.scale;
  args.window = {-1, params.do_causal != 0 ? 0 : -1, 0, 1};
  args.span_len = kStraightSpan;
  args.row_end = params.seq_len;
  return args;
}

PackedLaunch packed_launch(const NativeLaunch& launch, std::size_t element_size) {
  PackedLaunch packed;
  packed.element_size = element_size;
  packed.max_head_dim = kMaxHeadDim;
  packed.threadgroups = launch.threadgroups;
  for (std::size_t i = 0; i < packed.buffers.size(); ++i) {
    const BoundMemory& memory = launch.bindings[i];
    packed.buffers[i] = {reinterpret_cast<std::uint64_t>(memory.data), memory.byte_len};
  }
  return packed;
}

SdpaArgs packed_args(const NativeLaunch& launch, std::size_t element_size) {
  const BoundMemory& memory = launch.bindings[SDPA_BUFFER_PARAMS];
  if (memory.byte_len < sizeof(SdpaParamsBlock)) {
    throw std::invalid_argument("buffer 4 holds no parameter block");
  }
  SdpaParamsBlock params;  // a copy: what is checked is what is used
  std::memcpy(&params, memory.data, sizeof(params));
  const std::string fault = packed_launch_fault(packed_launch(launch, element_size), params);
  if (!fault.empty()) throw std::invalid_argument(fault);
  return args_from_params(params);
}

}  // namespace

SdpaArgs launch_args(const NativeLaunch& launch, std::size_t element_size) {
  if (launch.bound(SDPA_BUFFER_ARGS)) return launch.value<SdpaArgs>(SDPA_BUFFER_ARGS);
  return packed_args(launch, element_size);
}

}  // namespace metal_sdpa::cpu
