// sdpa_decode's tables, shared by its plan and its kernels.
#pragma once

#include <cstdint>

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

/// Buffer index of u32 [B, Hkv]: spans of a KV head that are done. Behind those of sdpa_args.h; the
/// other devices have no such buffer.
constexpr std::uint32_t kBufferSpansDone = 12;

/// The state of one row and one span in scratch memory: f32 slots, in units of 2^maximum.
constexpr int kStateMaximum = 0;  ///< in log2 units
constexpr int kStateSum = 1;
constexpr int kStateNumerators = 16;  ///< Dv of them; the step before fills a cache line

/// Slots of a state: numerators rounded up to what the widest kernel writes at once.
constexpr std::int64_t decode_state_slots(std::int64_t value_dim) {
  return kStateNumerators + (value_dim + 31) / 32 * 32;
}

}  // namespace metal_sdpa::cpu
