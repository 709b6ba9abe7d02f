// sdpa_prefill's tables, shared by its plan and its kernels.
#pragma once

namespace metal_sdpa::cpu {

/// Keys of one block: packed once, then used by all rows of a work item while in the L2 cache.
constexpr int prefill_block_len(int head_dim, int value_dim) {
  const int width = head_dim + value_dim;
  if (width <= 384) return 256;
  return width <= 768 ? 128 : 64;
}

/// Keys of one span, which ends a chain of f32 additions and is the least that one work item takes:
/// at most 8 blocks, and at most 1024 keys, so that a long cache has items for every thread.
constexpr int prefill_span_len(int block_len) { return block_len <= 128 ? 8 * block_len : 1024; }

/// Query rows of one work item, where there are as many: enough to make packing cheap, few enough
/// to leave their operands in the L2 cache. Never changes bits.
constexpr int kPrefillItemRows = 192;

}  // namespace metal_sdpa::cpu
