// Which rows of K and V come near, and when: memory gives its full rate only to requests in the
// order of addresses, which the arithmetic does not follow.
#pragma once

#include "cpu/fast/near_rows.h"
#include "cpu/fast/support.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// Whether arithmetic takes so long, `line_slots` multiply-adds a line of memory for each of n_rows
/// rows, that it has to go on while memory is waited for: then rows come near kAheadBytes before
/// they are read, between multiply-adds. With less to do it is faster to load each block at once:
/// prefetches that come faster than memory answers are lost, on processors that lose them.
inline bool is_far_ahead(int line_slots, int n_rows) {
  return line_slots * n_rows > most_slots_to_load;
}

/// With half of them wide rows lose a tenth of the rate, with a quarter of them all rows lose a
/// fifth: memory answers too late. With more, too much would have to come near before a span
/// begins.
inline constexpr int kAheadBytes = 16384;

/// Bytes to load at once: half as many or twice as many cost up to a quarter of the rate.
inline constexpr int kLoadBytes = 4096;

/// The keys or the values of a span, which are read block by block.
class BlockWalk {
 public:
  BlockWalk() = default;
  BlockWalk(const MemoryRows& rows, int block) : rows_(rows), block_(block) {
    if (rows.n_rows <= block) return;
    const int block_bytes = block * rows.row_bytes;
    ahead_ = (kAheadBytes + block_bytes - 1) / block_bytes;
    n_blocks_ = (rows.n_rows + block - 1) / block;
  }

  int n_blocks() const { return n_blocks_; }
  int begin(int i) const { return i * block_; }
  int end(int i) const {
    const int end = begin(i) + block_;
    return end < rows_.n_rows ? end : rows_.n_rows;
  }
  MemoryRows at(int i) const { return rows_.slice(begin(i), end(i)); }

  /// The rows that have to be near when the first one is read.
  MemoryRows first() const { return rows_.slice(0, n_first()); }

  /// What comes near while block i is read, far ahead: a later block, or, after the last one, a
  /// part of the first rows of `next`.
  MemoryRows during(int i, const BlockWalk& next) const {
    const int part = i + ahead_ - n_blocks_;
    return part < 0 ? at(i + ahead_) : next.first().part(part, part + 1, ahead_);
  }

  /// What comes near of the first rows of `next` while block i is loaded at once and read.
  MemoryRows meanwhile(int i, const BlockWalk& next) const {
    return next.first().part(i, i + 1, n_blocks_);
  }

  /// First rows of `next` that come near during none of the blocks, because these are too few.
  MemoryRows never_during(const BlockWalk& next) const {
    return next.first().part(0, ahead_ > n_blocks_ ? ahead_ - n_blocks_ : 0, ahead_);
  }

 private:
  int n_first() const { return ahead_ < n_blocks_ ? ahead_ * block_ : rows_.n_rows; }

  MemoryRows rows_;
  int block_ = 1;  ///< rows of a block
  int ahead_ = 1;  ///< blocks in kAheadBytes; 1 where there is one block
  int n_blocks_ = 1;
};

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
