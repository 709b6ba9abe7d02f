// Prefill and short chunks: up to 16 packed rows of a KV head a team. A threadgroup has
// neighbouring rows, so its simdgroups read the same keys at about the same time. Where there are
// few rows, keys are cut into spans over threadgroups. attention.h has the kernel, README.md the
// grid.
#include <metal_stdlib>

#include "attention.h"
#include "sdpa_args.h"
#include "sdpa_problem.h"

template <typename T, int kDim>
[[kernel]] void sdpa_prefill(
    device const T* q [[buffer(SDPA_BUFFER_Q)]], device const T* k [[buffer(SDPA_BUFFER_K)]],
    device const T* v [[buffer(SDPA_BUFFER_V)]],
    device T* out [[buffer(SDPA_BUFFER_OUT), function_constant(write_output)]],
    constant SdpaArgs& constant_args [[buffer(SDPA_BUFFER_ARGS)]],
    device float* lse [[buffer(SDPA_BUFFER_LSE), function_constant(write_output_lse)]],
    device const SdpaWorkItem* work [[buffer(SDPA_BUFFER_WORK), function_constant(work_list)]],
    device float* partial_o [[buffer(SDPA_BUFFER_PARTIAL_O), function_constant(write_partial)]],
    device float2* partial_ms [[buffer(SDPA_BUFFER_PARTIAL_MS), function_constant(write_partial)]],
    device const uchar* mask [[buffer(SDPA_BUFFER_MASK), function_constant(has_mask)]],
    device const uchar* sinks [[buffer(SDPA_BUFFER_SINKS), function_constant(has_sinks)]],
    device const float* slopes [[buffer(SDPA_BUFFER_ALIBI), function_constant(alibi)]],
    device const uchar* table [[buffer(SDPA_BUFFER_PAGES), function_constant(paged)]],
    threadgroup float2* exchange [[threadgroup(0)]],
    uint3 grid_position [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simd_lane [[thread_index_in_simdgroup]]) {
  using namespace metal_sdpa;
  const SdpaArgs args = constant_args;
  uint3 group = grid_position;
  SdpaWorkItem item = grid_item(args, group);
  if (work_list) item = list_item(work, group);

  AttentionBuffers<T> buffers;
  buffers.q = q;
  buffers.k = k;
  buffers.v = v;
  if (write_output) buffers.out = out;
  if (write_output_lse) buffers.lse = lse;
  if (write_partial) {
    buffers.partial_o = partial_o;
    buffers.partial_ms = partial_ms;
  }
  if (has_mask) buffers.mask = mask;
  if (has_sinks) buffers.sinks = sinks;
  if (alibi) buffers.slopes = slopes;
  if (paged) buffers.table = table;
  attention<T, kDim, true>(buffers, args, item, exchange, group, int(simdgroup), int(simd_lane));
}

#define SDPA_INSTANTIATE(name, type, dim) \
  template [[host_name(name)]] [[kernel]] decltype(sdpa_prefill<type, dim>) sdpa_prefill<type, dim>;
SDPA_INSTANTIATE("sdpa_prefill_f32_d32", float, 32)
SDPA_INSTANTIATE("sdpa_prefill_f32_d64", float, 64)
SDPA_INSTANTIATE("sdpa_prefill_f32_d96", float, 96)
SDPA_INSTANTIATE("sdpa_prefill_f32_d128", float, 128)
SDPA_INSTANTIATE("sdpa_prefill_f32_d192", float, 192)
SDPA_INSTANTIATE("sdpa_prefill_f32_d256", float, 256)
SDPA_INSTANTIATE("sdpa_prefill_f32_d384", float, 384)
SDPA_INSTANTIATE("sdpa_prefill_f32_d512", float, 512)
SDPA_INSTANTIATE("sdpa_prefill_f32_d576", float, 576)
SDPA_INSTANTIATE("sdpa_prefill_f16_d32", half, 32)
SDPA_INSTANTIATE("sdpa_prefill_f16_d64", half, 64)
SDPA_INSTANTIATE("sdpa_prefill_f16_d96", half, 96)
SDPA_INSTANTIATE("sdpa_prefill_f16_d128", half, 128)
SDPA_INSTANTIATE("sdpa_prefill_f16_d192", half, 192)
SDPA_INSTANTIATE("sdpa_prefill_f16_d256", half, 256)
SDPA_INSTANTIATE("sdpa_prefill_f16_d384", half, 384)
SDPA_INSTANTIATE("sdpa_prefill_f16_d512", half, 512)
SDPA_INSTANTIATE("sdpa_prefill_f16_d576", half, 576)
SDPA_INSTANTIATE("sdpa_prefill_bf16_d32", bfloat, 32)
SDPA_INSTANTIATE("sdpa_prefill_bf16_d64", bfloat, 64)
SDPA_INSTANTIATE("sdpa_prefill_bf16_d96", bfloat, 96)
SDPA_INSTANTIATE("sdpa_prefill_bf16_d128", bfloat, 128)
SDPA_INSTANTIATE("sdpa_prefill_bf16_d192", bfloat, 192)
SDPA_INSTANTIATE("sdpa_prefill_bf16_d256", bfloat, 256)
SDPA_INSTANTIATE("sdpa_prefill_bf16_d384", bfloat, 384)
SDPA_INSTANTIATE("sdpa_prefill_bf16_d512", bfloat, 512)
SDPA_INSTANTIATE("sdpa_prefill_bf16_d576", bfloat, 576)
#undef SDPA_INSTANTIATE
