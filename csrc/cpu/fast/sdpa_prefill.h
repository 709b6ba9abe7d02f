// sdpa_prefill's tables, shared by its plan and its kernels.
#pragma once

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

/// Query rows of one work item, where there are as many: at least so many, which makes packing
/// cheap, and twice as many where items are plenty and `width`, D + Dv, leaves their queries and
/// numerators in the L2 cache beside a block of keys. Never changes bits.
constexpr int kPrefillItemRows = 192;
constexpr int prefill_most_item_rows(int width) {
  constexpr int kSlots = 2 * kPrefillItemRows * 256;
  if (width <= 256) return 2 * kPrefillItemRows;
  return width * kPrefillItemRows < kSlots ? kSlots / width : kPrefillItemRows;
}

}  // namespace metal_sdpa::cpu
