// sdpa_decode's tables, shared by its plan and its kernels.
#pragma once

#include "cpu/fast/span_states.h"

namespace metal_sdpa::cpu {

/// Query rows under one KV head, L * Hq / Hkv, that share one reading of its keys from memory.
constexpr int kDecodeBatchRows = 16;

/// Keys of one span: about 512 KB of K and V, since every change between the two costs a wait for
/// memory, from 64 keys to 512, where a chain of f32 additions must end.
constexpr int decode_span_len(int element_bytes, int head_dim, int value_dim) {
  int keys = 512;
  while (keys > 64 && keys * element_bytes * (head_dim + value_dim) > 512 << 10) keys /= 2;
  return keys;
}

}  // namespace metal_sdpa::cpu
