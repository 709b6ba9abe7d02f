// One work item of sdpa_decode: all query rows of one KV head against one span of its keys.
#pragma once

#include "cpu/fast/decode_values.h"
#include "cpu/fast/finish_row.h"
#include "cpu/fast/span_memory.h"
#include "cpu/fast/support.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// Rows of the parts that a batch's scores are stored in. A tile takes whole parts.
inline constexpr int kPartRows = 4;
inline constexpr int kBatchParts = kDecodeBatchRows / kPartRows;

template <int kN>
struct Count {
  static constexpr int value = kN;
};

/// Runs run(row, Count<kRows>()) as often as kRows rows are left; returns the next row.
template <int kRows, typename Run>
inline int for_tiles_of(int row, int n_rows, const Run& run) {
  if constexpr (kRows <= kMostRows) {
    for (; row + kRows <= n_rows; row += kRows) run(row, Count<kRows>());
  }
  return row;
}

/// Cuts n_rows rows into tiles: calls run(first row, Count<rows of the tile>()).
template <typename Run>
inline void for_each_tile(int n_rows, const Run& run) {
  int row = for_tiles_of<16>(0, n_rows, run);
  row = for_tiles_of<12>(row, n_rows, run);
  row = for_tiles_of<8>(row, n_rows, run);
  row = for_tiles_of<4>(row, n_rows, run);
  row = for_tiles_of<3>(row, n_rows, run);
  row = for_tiles_of<2>(row, n_rows, run);
  for_tiles_of<1>(row, n_rows, run);
}

/// Rows of the first tile of n_rows.
inline int first_tile_rows(int n_rows) {
  int rows = 0;
  for_each_tile(n_rows, [&](int r, auto count) { rows = r == 0 ? count.value : rows; });
  return rows;
}

inline bool is_one_tile(int n_rows) { return first_tile_rows(n_rows) == n_rows; }

/// Runs run(block, first row, Count<rows of the tile>()) for all blocks in turn and all tiles of
/// n_rows rows. The usual single tile is chosen once, not for every block.
template <typename Run>
inline void for_each_block_and_tile(int n_blocks, int n_rows, const Run& run) {
  if (is_one_tile(n_rows)) {
    for_each_tile(n_rows, [&](int, auto count) {
      for (int i = 0; i < n_blocks; ++i) run(i, 0, count);
    });
    return;
  }
  for (int i = 0; i < n_blocks; ++i) {
    for_each_tile(n_rows, [&](int r, auto count) { run(i, r, count); });
  }
}

/// Rows whose values are added at once, of a tile of `rows`.
constexpr int rows_at_once(int rows) { return rows % 8 == 0 && kSums > 8 ? 8 : smaller(rows, 4); }

template <typename T>
class DecodeItem {
 public:
  DecodeItem(const NativeLaunch& launch, sdpa_i64 b, sdpa_i64 kv_h, sdpa_i64 span)
      : launch_(launch),
        args_(args_of(launch)),
        sequence_(sequence_of(launch, b)),
        b_(b),
        kv_h_(kv_h),
        span_(span),
        keys_(from_span(key_rows<T>(launch, b, kv_h))),
        values_(from_span(value_rows<T>(launch, b, kv_h))),
        group_(static_cast<int>(args_.n_heads / args_.n_kv_heads)),
        n_rows_(sdpa_i64{args_.seq_len} * group_),
        tile_rows_(first_tile_rows(static_cast<int>(smaller<sdpa_i64>(n_rows_, kDecodeBatchRows)))),
        q_step_((slots_for<T>(static_cast<int>(args_.head_dim)) + kLanes - 1) / kLanes * kLanes),
        part_slots_(static_cast<int>(args_.span_len) * kPartRows),
        states_(launch, b, kv_h) {
    const sdpa_i64 own_states = args_.n_spans > 1 ? 0 : n_rows_ * state_slots(args_.value_dim);
    const sdpa_i64 slots = kDecodeBatchRows * (q_step_ + width()) + kBatchParts * part_slots_ +
                           own_states + RowTotal::slots(width());
    q_ = static_cast<float*>(thread_scratch(static_cast<std::size_t>(slots) * sizeof(float)));
    scores_ = q_ + kDecodeBatchRows * q_step_;
    groups_ = scores_ + kBatchParts * part_slots_;
    total_ = groups_ + kDecodeBatchRows * width();
    if (args_.n_spans <= 1) states_.place(total_ + RowTotal::slots(width()));
  }

  void run(StopToken& stop) {
    const sdpa_i64 n_spans = span_count(n_rows_ - 1);  // later rows see no less
    if (span_ >= larger<sdpa_i64>(n_spans, 1)) return;
    for (sdpa_i64 row = 0; row < n_rows_ && n_spans > 0; row += kDecodeBatchRows) {
      attend(row, static_cast<int>(smaller<sdpa_i64>(kDecodeBatchRows, n_rows_ - row)));
    }
    if (n_spans > 1 && !states_.is_last(b_ * args_.n_kv_heads + kv_h_, 1, n_spans)) return;
    for (sdpa_i64 row = 0; row < n_rows_; ++row) finish(row, stop);
  }

 private:
  int width() const { return (static_cast<int>(args_.value_dim) + kLanes - 1) / kLanes * kLanes; }
  sdpa_i64 head_of(sdpa_i64 row) const { return kv_h_ * group_ + row % group_; }
  sdpa_i64 query_of(sdpa_i64 row) const { return row / group_; }

  /// Spans that row `row` sees keys of.
  sdpa_i64 span_count(sdpa_i64 row) const {
    const sdpa_i64 keys = visible_keys(args_, sequence_, query_of(row));
    return (keys + args_.span_len - 1) / args_.span_len;
  }

  /// Keys of this span that row `row` sees.
  int visible(sdpa_i64 row) const {
    const sdpa_i64 keys = visible_keys(args_, sequence_, query_of(row)) - span_ * args_.span_len;
    return static_cast<int>(larger<sdpa_i64>(smaller<sdpa_i64>(keys, args_.span_len), 0));
  }

  /// States of rows row..row + n_rows for this span.
  void attend(sdpa_i64 row, int n_rows) {
    const int n_keys = visible(row + n_rows - 1);
    if (n_keys == 0) return;
    int seen[kDecodeBatchRows];
    float* states[kDecodeBatchRows];
    for (int r = 0; r < n_rows; ++r) {
      seen[r] = visible(row + r);
      states[r] = states_.slots_of(args_.n_spans > 1 ? span_ : 0, row + r);
    }
    for_each_tile(n_rows,
                  [&](int r, auto count) { pack_queries<count.value>(row + r, q_ + r * q_step_); });
    plan_walks(n_keys);
    score(n_rows, n_keys, row == 0);
    for_each_tile(n_rows, [&](int r, auto count) {
      softmax_span<T, count.value>(scores_of(r), n_keys, seen + r, states + r);
    });
    add_all_values(n_rows, states, row == 0);
  }

  /// A tile of kRows query rows from `row` on, and zeros for rows that only fill its vectors.
  template <int kRows>
  void pack_queries(sdpa_i64 row, float* to) const {
    using Shape = DotShape<T, kRows>;
    for (int r = 0; r < Shape::kVecs * Shape::kVecRows; ++r) {
      const T* q = r < kRows ? query_rows<T>(launch_, b_, head_of(row + r))[query_of(row + r)]
                             : zero_row<T>();
      pack_query<T, kRows>(q, static_cast<int>(args_.head_dim), r, to);
    }
  }

  /// Scores of the tile that starts with row `row` of the batch, a multiple of kPartRows.
  float* scores_of(int row) const { return scores_ + row / kPartRows * part_slots_; }

  /// K or V from this span's first key on.
  Rows<const T> from_span(const Rows<const T>& rows) const {
    return {rows[span_ * args_.span_len], rows.stride};
  }

  /// The blocks of this span, and the keys that follow.
  void plan_walks(int n_keys) {
    const int batch = static_cast<int>(smaller<sdpa_i64>(n_rows_, kDecodeBatchRows));
    int least = 1;
    for_each_tile(static_cast<int>(n_rows_),
                  [&](int, auto count) { least = larger(DotShape<T, count.value>::kKeys, least); });
    const int key_block =
        key_block_len<T>(static_cast<int>(args_.head_dim), tile_rows_, is_one_tile(batch), least);
    const int value_block = value_block_len<T>(static_cast<int>(args_.value_dim), tile_rows_);
    const sdpa_i64 n_next = smaller<sdpa_i64>(n_left() - n_keys, args_.span_len);
    key_walk_ = {memory_rows(keys_, 0, n_keys, args_.head_dim), key_block};
    value_walk_ = {memory_rows(values_, 0, n_keys, args_.value_dim), value_block};
    next_walk_ = {memory_rows(keys_, n_keys, n_next, args_.head_dim), key_block};
  }

  /// Loads block i of `walk`, unless it came near far ahead. Returns what shall come near while it
  /// is read; `next` is what follows.
  static MemoryRows begin_block(const BlockWalk& walk, int i, bool is_far, const BlockWalk& next) {
    if (is_far) return walk.during(i, next);
    NearRows(walk.at(i)).template bring_all<Load>();
    return walk.meanwhile(i, next);
  }

  void score(int n_rows, int n_keys, bool is_first_batch) {
    const bool is_far = keys_far_ahead<T>(tile_rows_);
    if (is_first_batch && is_far) {
      NearRows(key_walk_.first()).template bring_all<Load>();
      NearRows(key_walk_.never_during(value_walk_)).template bring_all<Prefetch>();
    }
    const Vec scale = splat(args_.scale * kLog2E);
    MemoryRows near;
    for_each_block_and_tile(key_walk_.n_blocks(), n_rows, [&](int i, int r, auto count) {
      if (is_first_batch && r == 0) near = begin_block(key_walk_, i, is_far, value_walk_);
      score_keys<T, count.value>(q_ + r * q_step_, keys_, key_walk_.begin(i), key_walk_.end(i),
                                 n_keys, static_cast<int>(args_.head_dim), scale,
                                 NearRows(near.part(r, r + count.value, n_rows)), scores_of(r));
    });
  }

  void add_all_values(int n_rows, float* const* states, bool is_first_batch) {
    const bool is_far = values_far_ahead<T>(tile_rows_);
    MemoryRows near;
    for_each_block_and_tile(value_walk_.n_blocks(), n_rows, [&](int i, int r, auto count) {
      if (is_first_batch && r == 0) near = begin_block(value_walk_, i, is_far, next_walk_);
      constexpr int kRows = rows_at_once(count.value);
      for (int first = r; first < r + count.value; first += kRows) {
        add_block<T, kRows>(
            {scores_of(r) + (first - r) * kGroupKeys, DotShape<T, count.value>::kGroupSlots,
             values_, value_walk_.begin(i), value_walk_.end(i), static_cast<int>(args_.value_dim),
             states + first, groups_ + first * width(), width(),
             place_of_block(i, value_walk_.n_blocks())},
            NearRows(near.part(first, first + kRows, n_rows)));
      }
    });
  }

  /// Keys of the sequence from this span on.
  sdpa_i64 n_left() const { return sequence_.kv_len - span_ * args_.span_len; }

  /// What a row's spans add up to.
  RowState merged_state(sdpa_i64 row) const {
    const sdpa_i64 n_spans = span_count(row);
    if (n_spans == 1) return states_.state(0, row);
    return states_.merge(row, n_spans, RowTotal(total_, width()));
  }

  void finish(sdpa_i64 row, StopToken& stop) const {
    float* lse = lse_rows(launch_, b_, head_of(row));
    const sdpa_i64 query = query_of(row);
    finish_row<T>(
        args_, merged_state(row),
        {query_rows<T>(launch_, b_, head_of(row))[query], key_rows<T>(launch_, b_, kv_h_),
         value_rows<T>(launch_, b_, kv_h_), visible_keys(args_, sequence_, query),
         output_rows<T>(launch_, b_, head_of(row))[query], lse == nullptr ? nullptr : lse + query},
        stop);
  }

  const NativeLaunch& launch_;
  const SdpaArgs& args_;
  const SdpaSequence sequence_;
  const sdpa_i64 b_;
  const sdpa_i64 kv_h_;
  const sdpa_i64 span_;
  const Rows<const T> keys_;    ///< of this span
  const Rows<const T> values_;  ///< of this span
  const int group_;
  const sdpa_i64 n_rows_;  ///< L * group: row r is query r / group of the KV head's r % group
  const int tile_rows_;    ///< of the first tile, which decides how K and V come near
  const int q_step_;       ///< slots of a packed query
  const int part_slots_;   ///< slots of the scores of kPartRows rows

  SpanMemory states_;
  BlockWalk key_walk_;
  BlockWalk value_walk_;
  BlockWalk next_walk_;  ///< the keys of the next span

  float* q_ = nullptr;       ///< tiles, q_step_ slots a row
  float* scores_ = nullptr;  ///< of each tile [group][row][key], then weights
  float* groups_ = nullptr;  ///< numerators of a group of blocks, width slots a row
  float* total_ = nullptr;   ///< one RowTotal
};

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
