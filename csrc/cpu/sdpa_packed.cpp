// Reads and checks what a launch of the straightforward kernel was given.
#include "cpu/sdpa_packed.h"

#include <stdexcept>

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
  args.q_start = static_cast<sdpa_i64>(params.kv_seq_len) - params.seq_len;
  args.kv_len = params.kv_seq_len;
  args.n_heads = params.n_heads;
  args.n_kv_heads = params.n_kv_heads;
  args.seq_len = params.seq_len;
  args.head_dim = params.head_dim;
  args.value_dim = params.head_dim;
  args.scale = params.scale;
  args.causal = params.do_causal;
  args.span_len = kStraightSpan;
  args.row_end = params.seq_len;
  return args;
}

/// Throws what fails the command buffer: arguments that come by hand may not fit the memory.
void check_args(const SdpaArgs& args) {
  const bool fits = args.head_dim <= kMaxHeadDim && args.value_dim <= kMaxHeadDim &&
                    args.span_len >= 1 && args.span_len <= kStraightSpan && args.n_heads >= 1 &&
                    args.n_kv_heads >= 1 && args.n_heads % args.n_kv_heads == 0;
  if (!fits) throw std::invalid_argument("the argument block holds values the kernel cannot take");
}

/// The packed form has its tensors' sizes in the parameters: every binding must hold them.
void check_packed(const NativeLaunch& launch, const SdpaParamsBlock& params, std::size_t element) {
  const std::size_t width = params.head_dim * element;
  const std::size_t batch = launch.threadgroups.x;
  const std::size_t q_bytes = batch * params.n_heads * params.seq_len * width;
  const std::size_t kv_bytes = batch * params.n_kv_heads * params.kv_capacity * width;
  const bool fits = params.kv_seq_len <= params.kv_capacity &&
                    launch.bindings[SDPA_BUFFER_Q].byte_len >= q_bytes &&
                    launch.bindings[SDPA_BUFFER_K].byte_len >= kv_bytes &&
                    launch.bindings[SDPA_BUFFER_V].byte_len >= kv_bytes &&
                    launch.bindings[SDPA_BUFFER_OUT].byte_len >= q_bytes;
  if (!fits) throw std::invalid_argument("a buffer is smaller than the parameters say");
}

SdpaArgs packed_args(const NativeLaunch& launch, std::size_t element_size) {
  if (launch.bindings[SDPA_BUFFER_PARAMS].byte_len < sizeof(SdpaParamsBlock)) {
    throw std::invalid_argument("buffer 4 holds no parameter block");
  }
  const SdpaParamsBlock& params = launch.value<SdpaParamsBlock>(SDPA_BUFFER_PARAMS);
  check_packed(launch, params, element_size);
  return args_from_params(params);
}

}  // namespace

SdpaArgs launch_args(const NativeLaunch& launch, std::size_t element_size) {
  const SdpaArgs args = launch.bound(SDPA_BUFFER_ARGS) ? launch.value<SdpaArgs>(SDPA_BUFFER_ARGS)
                                                       : packed_args(launch, element_size);
  check_args(args);
  return args;
}

}  // namespace metal_sdpa::cpu
