// The argument block of the kernels write_kv_*, shared by host and shader.
#ifndef METAL_SDPA_WRITE_KV_ARGS_H
#define METAL_SDPA_WRITE_KV_ARGS_H

#include "shader_types.h"

#define WRITE_KV_BUFFER_NEW_K 0    // [T, Hkv, D]
#define WRITE_KV_BUFFER_NEW_V 1    // [T, Hkv, Dv]
#define WRITE_KV_BUFFER_K_CACHE 2  // [n_pages, page_size, Hkv, D]
#define WRITE_KV_BUFFER_V_CACHE 3  // [n_pages, page_size, Hkv, Dv]
#define WRITE_KV_BUFFER_SLOTS 4    // i32 [T]
#define WRITE_KV_BUFFER_ARGS 5     // WriteKvArgs

/// Threads of a threadgroup, which takes one head of one token (Metal).
#define WRITE_KV_THREADS 64

/// Element strides of one of the two, new rows and cache.
struct WriteKvStrides {
  sdpa_i64 new_offset;
  sdpa_i64 new_token;
  sdpa_i64 new_head;
  sdpa_i64 cache_offset;
  sdpa_i64 cache_page;
  sdpa_i64 cache_slot;  ///< from one slot of a page to the next
  sdpa_i64 cache_head;
};

struct WriteKvArgs {
  WriteKvStrides k;
  WriteKvStrides v;
  sdpa_i64 page_size;
  sdpa_i64 n_slots;  ///< of all pages; a slot that is none of them is left out
  sdpa_u32 tokens;
  sdpa_u32 heads;
  sdpa_u32 head_dim;
  sdpa_u32 value_dim;
};

SDPA_SHARED_ASSERT(sizeof(WriteKvArgs) == 144, "host and shader agree on 144 bytes");
SDPA_SHARED_ASSERT(offsetof(WriteKvArgs, page_size) == 112, "sizes follow the strides");

#endif  // METAL_SDPA_WRITE_KV_ARGS_H
