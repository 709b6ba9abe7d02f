// sdpa_prefill's tables, shared by its plan and its kernels.
#pragma once

namespace metal_sdpa::cpu {

/// Keys of one block: packed once, then used by all rows of a work item while in the L2 cache.
constexpr int prefill_block_len(int head_dim, int value_dim) {
  const int width = head_dim + value_dim;
  if (width <= 384) return 256;
  return width <= 768 ? 128 : 64;
}

/// Blocks of one span, which ends a chain of f32 additions.
constexpr int kPrefillSpanBlocks = 8;

/// Query rows of one work item, where there are as many: enough to make packing cheap, few enough
/// to leave their operands in the L2 cache. Never changes bits.
constexpr int kPrefillItemRows = 192;

}  // namespace metal_sdpa::cpu
