// sdpa_prefill's tables, shared by its plan and its kernels.
#pragma once

#include <algorithm>
#include <cstdint>

namespace metal_sdpa::cpu {

/// Keys of one block: packed once, then used by all rows of a work item while in the L2 cache.
constexpr int prefill_block_len(int head_dim, int value_dim) {
  const int width = head_dim + value_dim;
  if (width <= 384) return 256;
  return width <= 768 ? 128 : 64;
}

/// Keys of one span, which ends a chain of f32 additions and is the least that one work item takes.
/// At most 8 blocks; short where query rows under a KV head are few, so that there are items for
/// every thread, but a merge costs what 8 keys do.
constexpr int prefill_span_len(int block_len, std::int64_t rows) {
  if (block_len == 64 || rows <= 48) return 512;
  return 1024;
}

/// Most query rows of one work item: enough to make packing cheap. Item lengths never change bits.
constexpr int kPrefillItemRows = 192;

/// The same where items are plenty: up to twice as many, as long as queries and numerators of
/// `width`, D + Dv, take 384 KB at most; with a block of keys and values they fill 1 MB of L2
/// cache.
constexpr int prefill_most_item_rows(int width) {
  constexpr int kMostSlots = 2 * kPrefillItemRows * 256;
  return std::clamp(kMostSlots / width, kPrefillItemRows, 2 * kPrefillItemRows);
}

}  // namespace metal_sdpa::cpu
