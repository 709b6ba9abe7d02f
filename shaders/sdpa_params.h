// The 32-byte parameter block of the straightforward kernels sdpa, sdpa_f16 and sdpa_bf16.
#ifndef METAL_SDPA_SDPA_PARAMS_H
#define METAL_SDPA_SDPA_PARAMS_H

#include "shader_types.h"

/// Rows of query that one threadgroup of the straightforward kernel takes: one thread a row.
#define SDPA_TILE_Q 32

/// Shapes of packed row-major tensors: q and output [batch, n_heads, seq_len, head_dim],
/// k and v [batch, n_kv_heads, kv_capacity, head_dim]. Buffers: 0 Q, 1 K, 2 V, 3 output, 4 this.
struct SdpaParamsBlock {
  sdpa_u32 n_heads;      ///< query heads; a multiple of n_kv_heads
  sdpa_u32 n_kv_heads;   ///< query head h reads KV head h / (n_heads / n_kv_heads)
  sdpa_u32 head_dim;     ///< elements of one row of q, k, v and output
  sdpa_u32 seq_len;      ///< query rows a head
  sdpa_u32 kv_seq_len;   ///< keys in use; slots at or past it are never read into the result
  float scale;           ///< factor on q.k before the softmax
  sdpa_u32 kv_capacity;  ///< rows that k and v hold a head; at least kv_seq_len
  sdpa_u32 do_causal;    ///< 1: query i sees keys <= kv_seq_len - seq_len + i (signed); 0: all
};

SDPA_SHARED_ASSERT(sizeof(SdpaParamsBlock) == 32, "host and shader agree on 32 bytes");
SDPA_SHARED_ASSERT(offsetof(SdpaParamsBlock, n_heads) == 0, "n_heads first");
SDPA_SHARED_ASSERT(offsetof(SdpaParamsBlock, n_kv_heads) == 4, "n_kv_heads second");
SDPA_SHARED_ASSERT(offsetof(SdpaParamsBlock, head_dim) == 8, "head_dim third");
SDPA_SHARED_ASSERT(offsetof(SdpaParamsBlock, seq_len) == 12, "seq_len fourth");
SDPA_SHARED_ASSERT(offsetof(SdpaParamsBlock, kv_seq_len) == 16, "kv_seq_len fifth");
SDPA_SHARED_ASSERT(offsetof(SdpaParamsBlock, scale) == 20, "scale sixth");
SDPA_SHARED_ASSERT(offsetof(SdpaParamsBlock, kv_capacity) == 24, "kv_capacity seventh");
SDPA_SHARED_ASSERT(offsetof(SdpaParamsBlock, do_causal) == 28, "do_causal last");

#endif  // METAL_SDPA_SDPA_PARAMS_H
