// One work item of sdpa_decode: all query rows of one KV head against one span of its keys.
#pragma once

#include "cpu/fast/decode_values.h"
#include "cpu/fast/finish_row.h"
#include "cpu/fast/score_rule.h"
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
  /// `index`: which of the spans that any row of the sequence sees.
  DecodeItem(const NativeLaunch& launch, sdpa_i64 b, sdpa_i64 kv_h, sdpa_i64 index)
      : launch_(launch),
        args_(args_of(launch)),
        sequence_(sequence_of(launch, b)),
        b_(b),
        kv_h_(kv_h),
        all_keys_(sdpa_band_of_rows(sequence_, args_.window, 0, sdpa_i64{args_.seq_len} - 1)),
        spans_(spans_of(all_keys_, args_.span_len)),
        span_(spans_.begin + index),
        group_(static_cast<int>(args_.n_heads / args_.n_kv_heads)),
        n_all_rows_(rows_to_write(args_, sequence_)),
        n_rows_(sequence_.query_len * group_),
        tile_rows_(first_tile_rows(static_cast<int>(smaller<sdpa_i64>(n_rows_, kDecodeBatchRows)))),
        q_step_((slots_for<T>(static_cast<int>(args_.head_dim)) + kLanes - 1) / kLanes * kLanes),
        part_slots_(static_cast<int>(args_.span_len) * kPartRows),
        states_(launch, sequence_, b, kv_h),
        rule_(launch, sequence_, b) {
    const sdpa_i64 own_states = args_.n_spans > 1 ? 0 : n_rows_ * state_slots(args_.value_dim);
    const sdpa_i64 rule_slots = rule_.is_on() ? 2 * sdpa_i64{args_.span_len} : 0;
    const sdpa_i64 slots = kDecodeBatchRows * (q_step_ + width()) + kBatchParts * part_slots_ +
                           own_states + RowTotal::slots(width()) + rule_slots +
                           kPointerSlots * (2 * sdpa_i64{args_.span_len} + n_ahead() + 2);
    q_ = static_cast<float*>(thread_scratch(static_cast<std::size_t>(slots) * sizeof(float)));
    scores_ = q_ + kDecodeBatchRows * q_step_;
    groups_ = scores_ + kBatchParts * part_slots_;
    total_ = groups_ + kDecodeBatchRows * width();
    row_scores_ = total_ + RowTotal::slots(width());
    entries_.memory = row_scores_ + args_.span_len;
    key_table_ = reinterpret_cast<const T**>(row_scores_ + rule_slots + own_states);
    value_table_ = key_table_ + args_.span_len + n_ahead() + 1;
    if (args_.n_spans <= 1) states_.place(row_scores_ + rule_slots);
  }

  void run(StopToken& stop) {
    const sdpa_i64 n_spans = spans_.count();
    if (span_ - spans_.begin >= larger<sdpa_i64>(n_spans, 1)) return;
    if (n_rows_ > 0 && n_spans > 0) find_rows();
    for (sdpa_i64 row = 0; row < n_rows_ && n_spans > 0; row += kDecodeBatchRows) {
      attend(row, static_cast<int>(smaller<sdpa_i64>(kDecodeBatchRows, n_rows_ - row)));
    }
    if (n_spans > 1 && !states_.is_last(b_ * args_.n_kv_heads + kv_h_, 1, n_spans)) return;
    for (sdpa_i64 row = 0; row < n_all_rows_; ++row) finish(row, stop);
  }

 private:
  static constexpr sdpa_i64 kPointerSlots = sizeof(const T*) / sizeof(float);

  int width() const { return (static_cast<int>(args_.value_dim) + kLanes - 1) / kLanes * kLanes; }
  sdpa_i64 head_of(sdpa_i64 row) const { return kv_h_ * group_ + row % group_; }
  sdpa_i64 query_of(sdpa_i64 row) const { return row / group_; }

  SdpaBand band(sdpa_i64 row) const { return sdpa_band(sequence_, args_.window, query_of(row)); }

  /// Where the state of a row and this span goes.
  float* state_of(sdpa_i64 row) const {
    return states_.slots_of(args_.n_spans > 1 ? span_ - spans_.begin : 0, row);
  }

  /// States of rows row..row + n_rows for this span.
  void attend(sdpa_i64 row, int n_rows) {
    const sdpa_i64 begin = span_ * args_.span_len;
    const SdpaBand all =
        sdpa_band_of_rows(sequence_, args_.window, query_of(row), query_of(row + n_rows - 1));
    const SeenKeys keys = seen_keys(all, begin, args_.span_len);
    if (keys.end == 0) return;
    first_key_ = begin + keys.begin;
    keys_ = key_table_ + (first_key_ - first_found_);
    values_ = value_table_ + (first_key_ - first_found_);
    SeenKeys seen[kDecodeBatchRows];
    for (int r = 0; r < n_rows; ++r) {
      seen[r] = seen_keys(band(row + r), first_key_, keys.end - keys.begin);
    }
    attend_keys(row, n_rows, seen, trim(row, n_rows, keys.end - keys.begin, seen));
  }

  /// Of the n_keys keys from the first one on those up to the last that a mask leaves to any row.
  int trim(sdpa_i64 row, int n_rows, int n_keys, SeenKeys* seen) const {
    if (!rule_.has_mask()) return n_keys;
    int end = 0;
    for (int r = 0; r < n_rows; ++r) {
      const int most = seen[r].end;
      if (most <= end) continue;
      end = rule_.seen_end(head_of(row + r), query_of(row + r), first_key_, most, end);
    }
    for (int r = 0; r < n_rows; ++r) {
      const bool is_seen = seen[r].begin < end;
      seen[r] = is_seen ? SeenKeys{seen[r].begin, smaller(seen[r].end, end)} : SeenKeys{0, 0};
    }
    return end;
  }

  /// The same for the n_keys keys from the first one on.
  void attend_keys(sdpa_i64 row, int n_rows, const SeenKeys* seen, int n_keys) {
    float* states[kDecodeBatchRows];
    for (int r = 0; r < n_rows; ++r) {
      states[r] = state_of(row + r);
      states[r][kStateMaximum] = -kInfinity;
      states[r][kStateSum] = 0;
    }
    if (n_keys == 0) return;
    for_each_tile(n_rows,
                  [&](int r, auto count) { pack_queries<count.value>(row + r, q_ + r * q_step_); });
    plan_walks(n_keys);
    score(n_rows, n_keys, row == 0);
    for_each_tile(n_rows, [&](int r, auto count) {
      if (rule_.is_on()) apply_rule<count.value>(row + r, n_keys, scores_of(r));
      softmax_span<T, count.value>(scores_of(r), n_keys, seen + r, states + r);
    });
    add_all_values(n_rows, states, row == 0);
  }

  /// Scores of a tile in log2 units; a row's keys side by side meanwhile.
  template <int kRows>
  void apply_rule(sdpa_i64 row, int n_keys, float* scores) {
    constexpr int kGroupSlots = DotShape<T, kRows>::kGroupSlots;
    constexpr std::size_t kGroupBytes = kGroupKeys * sizeof(float);
    const int n_groups = (n_keys + kGroupKeys - 1) / kGroupKeys;
    for (int r = 0; r < kRows; ++r) {
      float* of_row = scores + r * kGroupKeys;
      for (int g = 0; g < n_groups; ++g) {
        __builtin_memcpy(row_scores_ + g * kGroupKeys, of_row + g * kGroupSlots, kGroupBytes);
      }
      rule_.apply(head_of(row + r), query_of(row + r), first_key_, n_keys, entries_, row_scores_);
      for (int g = 0; g < n_groups; ++g) {
        __builtin_memcpy(of_row + g * kGroupSlots, row_scores_ + g * kGroupKeys, kGroupBytes);
      }
    }
  }

  /// A tile of kRows query rows from `row` on, and zeros for rows that only fill its vectors.
  template <int kRows>
  void pack_queries(sdpa_i64 row, float* to) const {
    using Shape = DotShape<T, kRows>;
    for (int r = 0; r < Shape::kVecs * Shape::kVecRows; ++r) {
      const T* q = r < kRows
                       ? query_rows<T>(launch_, sequence_, b_, head_of(row + r))[query_of(row + r)]
                       : zero_row<T>();
      pack_query<T, kRows>(q, static_cast<int>(args_.head_dim), r, to);
    }
  }

  /// Scores of the tile that starts with row `row` of the batch, a multiple of kPartRows.
  float* scores_of(int row) const { return scores_ + row / kPartRows * part_slots_; }

  /// Keys of the next span that may come near: those of kAheadBytes, and what fills a block.
  sdpa_i64 n_ahead() const {
    const sdpa_i64 row_bytes = sdpa_i64{args_.head_dim} * static_cast<sdpa_i64>(sizeof(T));
    return smaller<sdpa_i64>(kAheadBytes / row_bytes + kMostBlockKeys, args_.span_len);
  }

  /// Rows of K and V that any row sees of this span, and those of K behind it.
  void find_rows() {
    const KeyRows<T> keys = key_rows<T>(launch_, sequence_, b_, kv_h_);
    const KeyRows<T> values = value_rows<T>(launch_, sequence_, b_, kv_h_);
    const sdpa_i64 begin = span_ * args_.span_len;
    first_found_ = larger(begin, all_keys_.begin);
    const sdpa_i64 end = smaller(begin + args_.span_len, all_keys_.end);
    end_found_ = smaller(begin + args_.span_len + n_ahead(), all_keys_.end);
    keys.find(first_found_, end_found_ - first_found_, key_table_);
    values.find(first_found_, end - first_found_, value_table_);
    keys_contiguous_ = keys.is_contiguous(args_.head_dim);
    values_contiguous_ = values.is_contiguous(args_.value_dim);
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
    const sdpa_i64 n_left = end_found_ - first_key_ - n_keys;
    const sdpa_i64 n_next = larger<sdpa_i64>(smaller<sdpa_i64>(n_left, args_.span_len), 0);
    key_walk_ = {memory_rows(keys_, n_keys, args_.head_dim, keys_contiguous_), key_block};
    value_walk_ = {memory_rows(values_, n_keys, args_.value_dim, values_contiguous_), value_block};
    next_walk_ = {memory_rows(keys_ + n_keys, n_next, args_.head_dim, keys_contiguous_), key_block};
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
    const Vec scale = splat(rule_.factor());
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

  /// What a row's spans add up to.
  RowState merged_state(sdpa_i64 row, const SdpaBand& keys) const {
    const SpanRange spans = spans_of(keys, args_.span_len);
    const SpanRange kept{spans.begin - spans_.begin, spans.end - spans_.begin};
    if (kept.count() == 1) return states_.state(kept.begin, row);
    return states_.merge(row, kept, RowTotal(total_, width()));
  }

  void finish(sdpa_i64 row, StopToken& stop) const {
    const SdpaBand keys = band(row);
    const RowState state =
        keys.begin < keys.end ? merged_state(row, keys) : RowState{-kInfinity, 0, kZeroRow};
    finish_row<T>(launch_, {b_, head_of(row), query_of(row)}, state, keys, rule_, stop);
  }

  const NativeLaunch& launch_;
  const SdpaArgs& args_;
  const SdpaSequence sequence_;
  const sdpa_i64 b_;
  const sdpa_i64 kv_h_;
  const SdpaBand all_keys_;  ///< that any row sees
  const SpanRange spans_;    ///< that any row sees
  const sdpa_i64 span_;
  const int group_;
  const sdpa_i64 n_all_rows_;  ///< to be written, L * group: row r is query r / group of the KV
                               ///< head's r % group
  const sdpa_i64 n_rows_;      ///< those in use
  const int tile_rows_;        ///< of the first tile, which decides how K and V come near
  const int q_step_;           ///< slots of a packed query
  const int part_slots_;       ///< slots of the scores of kPartRows rows

  SpanMemory states_;
  const ScoreRule rule_;
  MaskEntries entries_;
  sdpa_i64 first_key_ = 0;            ///< of this span that any row of the batch sees
  const T* const* keys_ = nullptr;    ///< rows from there on
  const T* const* values_ = nullptr;  ///< rows from there on
  sdpa_i64 first_found_ = 0;          ///< key of the tables' first row
  sdpa_i64 end_found_ = 0;            ///< one past the key of key_table_'s last row
  bool keys_contiguous_ = false;
  bool values_contiguous_ = false;
  BlockWalk key_walk_;
  BlockWalk value_walk_;
  BlockWalk next_walk_;  ///< the keys of the next span

  float* q_ = nullptr;           ///< tiles, q_step_ slots a row
  float* scores_ = nullptr;      ///< of each tile [group][row][key], then weights
  float* groups_ = nullptr;      ///< numerators of a group of blocks, width slots a row
  float* total_ = nullptr;       ///< one RowTotal
  float* row_scores_ = nullptr;  ///< of one row, where the score rule is on
  const T** key_table_ = nullptr;
  const T** value_table_ = nullptr;
};

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
