// One work item of sdpa_prefill: its memory and its way through the keys.
#pragma once

#include "cpu/fast/finish_row.h"
#include "cpu/fast/prefill_amx.h"
#include "cpu/fast/prefill_softmax.h"
#include "cpu/fast/score_rule.h"
#include "cpu/fast/sdpa_prefill.h"
#include "cpu/fast/span_memory.h"
#include "cpu/fast/support.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// The part of a KV head's work that is one item's.
struct PrefillShare {
  sdpa_i64 row_begin;
  int n_rows;
  sdpa_i64 span_begin;  ///< among those that any row of the sequence sees
  sdpa_i64 n_spans;
  sdpa_i64 counter;  ///< of spans done, shared by the items of the same rows
};

template <typename T>
class PrefillItem {
 public:
  PrefillItem(const NativeLaunch& launch, sdpa_i64 b, sdpa_i64 kv_h, const PrefillShare& share)
      : launch_(launch),
        args_(args_of(launch)),
        sequence_(sequence_of(launch, b)),
        b_(b),
        kv_h_(kv_h),
        row_begin_(share.row_begin),
        n_rows_(share.n_rows),
        group_(static_cast<int>(args_.n_heads / args_.n_kv_heads)),
        n_tiles_((n_rows_ + kRows - 1) / kRows),
        depth_(whole_depth<T>(slots_for<T>(static_cast<int>(args_.head_dim)))),
        out_vecs_((static_cast<int>(args_.value_dim) + kLanes - 1) / kLanes),
        block_len_(
            prefill_block_len(static_cast<int>(args_.head_dim), static_cast<int>(args_.value_dim))),
        keys_(sdpa_band_of_rows(sequence_, args_.window, query_of(0), query_of(n_rows_ - 1))),
        first_span_(first_span_of(sequence_, args_)),
        spans_(some_spans(spans_of(keys_, args_.span_len), first_span_)),
        span_begin_(larger(first_span_ + share.span_begin, spans_.begin)),
        span_end_(smaller(first_span_ + share.span_begin + share.n_spans, spans_.end)),
        end_key_(smaller(span_end_ * args_.span_len, keys_.end)),
        key_rows_(key_rows<T>(launch, sequence_, b, kv_h)),
        value_rows_(value_rows<T>(launch, sequence_, b, kv_h)),
        is_shared_(span_end_ - span_begin_ < spans_.count()),
        counter_(share.counter),
        shared_(launch, sequence_, b, kv_h),
        rule_(launch, sequence_, b) {}

  /// False when asked to stop, with no output written.
  bool run(StopToken& stop) {
    if (span_begin_ >= span_end_) return true;
    if (keys_.begin >= keys_.end) return write_empty_rows(stop);
    place_memory();
    pack_queries();
    if (has_totals()) reset_totals();
    for (sdpa_i64 span = span_begin_; span < span_end_; ++span) {
      if (!attend_span(span, stop)) return false;
      if (has_totals()) merge_span(span);
      if (is_shared_) keep_span(span);
    }
    if (!is_shared_) {
      write_rows(stop);
    } else if (shared_.is_last(counter_, span_end_ - span_begin_, spans_.count())) {
      write_shared_rows(stop);
    }
    return true;
  }

 private:
  static constexpr int kRows = kTileRows<T>;
  static constexpr int kStep = kTileStep<T>;
  using States = TileStates<kStep>;

  /// Whether rows may see more than one span, all of them this item's.
  bool has_totals() const { return spans_.count() > 1 && !is_shared_; }

  static sdpa_i64 first_span_of(const SdpaSequence& sequence, const SdpaArgs& args) {
    const sdpa_i64 last = sdpa_i64{args.seq_len} - 1;
    return spans_of(sdpa_band_of_rows(sequence, args.window, 0, last), args.span_len).begin;
  }

  /// Rows that see nothing have to be written, too: by whoever has the first span.
  static SpanRange some_spans(const SpanRange& spans, sdpa_i64 first) {
    return spans.count() > 0 ? spans : SpanRange{first, first + 1};
  }

  /// Rows of the item from tile_begin(t) on are tile t: as even as can be.
  int tile_begin(int tile) const { return tile * n_rows_ / n_tiles_; }
  int width() const { return out_vecs_ * kLanes; }
  int out_step() const { return numerator_step(out_vecs_); }

  sdpa_i64 query_of(int row) const { return (row_begin_ + row) / group_; }
  sdpa_i64 head_of(int row) const { return kv_h_ * group_ + (row_begin_ + row) % group_; }
  SdpaBand band(int row) const { return sdpa_band(sequence_, args_.window, query_of(row)); }
  SpanRange row_spans(int row) const { return spans_of(band(row), args_.span_len); }

  /// Whether the row sees any key of the span.
  bool sees_span(int row, sdpa_i64 span) const {
    const SdpaBand keys = band(row);
    return seen_keys(keys, span * args_.span_len, args_.span_len).end > 0;
  }

  void place_memory() {
    const int n_panels = (out_vecs_ + 1) / 2;
    panel_depth_ = (block_len_ + kPerSlot<T> - 1) / kPerSlot<T>;
    const sdpa_i64 q_slots = sdpa_i64{n_tiles_} * kStep * depth_;
    const sdpa_i64 k_slots = sdpa_i64{depth_} * ((block_len_ + kPanel - 1) / kPanel * kPanel);
    const sdpa_i64 v_slots = sdpa_i64{n_panels} * kPanel * panel_depth_;
    const sdpa_i64 out_slots = sdpa_i64{n_rows_} * out_step();
    const sdpa_i64 tile_slots = sdpa_i64{n_tiles_} * sizeof(States) / sizeof(float);
    const sdpa_i64 n_totals = has_totals() ? n_rows_ : is_shared_ ? 1 : 0;
    const sdpa_i64 total_slots = RowTotal::slots(width()) * n_totals;
    const sdpa_i64 block_slots = kPairs<T> ? sizeof(PairsBlock) / sizeof(float) : 0;
    const sdpa_i64 heavy_slots = kPairs<T> ? kRows * sizeof(HeavyPairs) / sizeof(float) : 0;
    const sdpa_i64 mask_slots = rule_.has_mask() ? kMaxBlock : 0;
    const sdpa_i64 table_slots = (2 * block_len_ + 1) * sdpa_i64{sizeof(const T*) / sizeof(float)};
    constexpr int kPlaces = 12;
    const sdpa_i64 slots[kPlaces] = {q_slots,     k_slots,    v_slots,     kRows * kScoreStep,
                                     tile_slots,  out_slots,  total_slots, block_slots,
                                     heavy_slots, mask_slots, table_slots, table_slots};
    float* key_table = nullptr;
    float* value_table = nullptr;
    float** const places[kPlaces] = {&q_,          &k_,         &v_,     &scores_, &states_,
                                     &numerators_, &totals_,    &block_, &heavy_,  &entries_.memory,
                                     &key_table,   &value_table};
    constexpr sdpa_i64 kLine = 16;  // slots
    sdpa_i64 total = 0;
    for (const sdpa_i64 n : slots) total += (n + kLine - 1) / kLine * kLine;
    float* next = static_cast<float*>(thread_scratch(static_cast<std::size_t>(total) * 4));
    for (int i = 0; i < kPlaces; ++i) {
      *places[i] = next;
      next += (slots[i] + kLine - 1) / kLine * kLine;
    }
    key_table_ = reinterpret_cast<const T**>(key_table);
    value_table_ = reinterpret_cast<const T**>(value_table);
  }

  PairsBlock* pairs_block() { return reinterpret_cast<PairsBlock*>(block_); }
  HeavyPairs* heavy() { return reinterpret_cast<HeavyPairs*>(heavy_); }

  States& states(int tile) { return reinterpret_cast<States*>(states_)[tile]; }

  const float* queries(int tile) const { return q_ + sdpa_i64{tile} * kStep * depth_; }

  void pack_queries() {
    for (int tile = 0; tile < n_tiles_; ++tile) {
      const int begin = tile_begin(tile);
      const T* rows[kStep];
      for (int r = 0; r < kStep; ++r) {
        const int row = begin + r;
        const bool is_row = row < tile_begin(tile + 1);
        rows[r] = is_row ? query_rows<T>(launch_, sequence_, b_, head_of(row))[query_of(row)]
                         : zero_row<T>();
      }
      pack_tile(rows, q_ + sdpa_i64{tile} * kStep * depth_);
    }
  }

  /// AMX multiplies rows as they lie, vectors take the same slot of all rows.
  void pack_tile(const T* const* rows, float* packed) {
    const int head_dim = static_cast<int>(args_.head_dim);
    if constexpr (kUsesAmx<T>) {
      for (int r = 0; r < kStep; ++r) pack_row(rows[r], head_dim, depth_, packed + r * depth_);
    } else {
      for (int r = 0; r < kStep; r += kLanes) {
        pack_transposed(rows + r, rows + r, head_dim, packed + r, kStep);
      }
    }
  }

  void reset_span() {
    for (int tile = 0; tile < n_tiles_; ++tile) states(tile).reset();
    for (int i = 0; i < n_rows_ * out_step(); i += kLanes) store(numerators_ + i, splat(0.0f));
  }

  bool attend_span(sdpa_i64 span, StopToken& stop) {
    reset_span();
    const sdpa_i64 end = smaller<sdpa_i64>((span + 1) * args_.span_len, end_key_);
    for (sdpa_i64 begin = first_block(span); begin < end; begin += block_len_) {
      if (stop.stop_requested()) return false;
      attend_block(begin, static_cast<int>(smaller<sdpa_i64>(block_len_, end - begin)));
    }
    return true;
  }

  /// Where the first block of the span with a key that any row sees begins. Blocks are counted from
  /// key 0, so that bits do not depend on what other rows of the item see.
  sdpa_i64 first_block(sdpa_i64 span) const {
    const sdpa_i64 begin = span * args_.span_len;
    const sdpa_i64 before = keys_.begin - begin;
    return before <= 0 ? begin : begin + before / block_len_ * block_len_;
  }

  /// Keys begin..begin+n_keys, for all rows that see any of them.
  void attend_block(sdpa_i64 begin, int n_keys) {
    n_keys = trim_block(begin, n_keys);
    if (n_keys == 0) return;
    const int skip = static_cast<int>(larger<sdpa_i64>(keys_.begin - begin, 0));
    const int n_rows = find_rows(begin, skip);
    pack_keys(key_table_, skip, n_keys, static_cast<int>(args_.head_dim), k_);
    pack_values(value_table_, skip, n_keys, n_rows, static_cast<int>(args_.value_dim), panel_depth_,
                v_);
    if constexpr (kPairs<T>) {
      describe_values(value_table_, skip, n_keys, static_cast<int>(args_.value_dim),
                      *pairs_block());
      spread_fractions(static_cast<std::uint32_t>(begin / block_len_), pairs_block()->fractions);
    }
    aim_at_next(begin + block_len_);
    // Around the tiles alone: the system's libraries know nothing of AMX's registers, and a thread
    // that is put aside with registers in use has 8 KB more to keep.
    [[maybe_unused]] const AmxScope<kUsesAmx<T>> scope;
    for (int tile = 0; tile < n_tiles_; ++tile) attend_tile(tile, begin, n_keys);
  }

  /// Rows of the block that begins at key `begin`, but for the first `skip`, and of the next one of
  /// this item; returns how many, from `begin` on.
  int find_rows(sdpa_i64 begin, int skip) {
    const sdpa_i64 n = smaller<sdpa_i64>(2 * block_len_, end_key_ - begin);
    key_rows_.find(begin + skip, n - skip, key_table_ + skip);
    value_rows_.find(begin + skip, n - skip, value_table_ + skip);
    return static_cast<int>(n);
  }

  /// The block that begins at key `begin` comes near over the steps of one block's products.
  void aim_at_next(sdpa_i64 begin) {
    const sdpa_i64 n = larger<sdpa_i64>(smaller<sdpa_i64>(block_len_, end_key_ - begin), 0);
    const sdpa_i64 k_steps = sdpa_i64{depth_} * ((block_len_ + kPanel - 1) / kPanel);
    const sdpa_i64 v_steps = sdpa_i64{slots_for<T>(block_len_)} * ((out_vecs_ + 1) / 2);
    const int tile_rows = (n_rows_ + n_tiles_ - 1) / n_tiles_;
    const int turns = kUsesAmx<T> || half_rows(tile_rows, 2) == tile_rows ? 1 : 2;
    near_.aim(memory_rows(key_table_ + block_len_, n, args_.head_dim,
                          key_rows_.is_contiguous(args_.head_dim)),
              memory_rows(value_table_ + block_len_, n, args_.value_dim,
                          value_rows_.is_contiguous(args_.value_dim)),
              n_tiles_ * turns * (k_steps + v_steps));
  }

  /// What the rows of a tile see of a block's first block_keys keys, by their bands; returns the
  /// keys that all of it lies in.
  SeenKeys look_at_block(int tile, sdpa_i64 begin, int block_keys, SeenKeys* seen) const {
    const int first = tile_begin(tile);
    const int n = tile_begin(tile + 1) - first;
    SeenKeys all{block_keys, 0};
    for (int r = 0; r < n; ++r) {
      seen[r] = seen_keys(band(first + r), begin, block_keys);
      if (seen[r].end == 0) continue;
      all.begin = smaller(all.begin, seen[r].begin);
      all.end = larger(all.end, seen[r].end);
    }
    return all;
  }

  /// One past the last key of those that the mask lets any row of the tile see, `least` at least.
  int seen_by_tile(int tile, sdpa_i64 begin, const SeenKeys* seen, int least) const {
    const int first = tile_begin(tile);
    int end = least;
    for (int row = first; row < tile_begin(tile + 1); ++row) {
      const int most = seen[row - first].end;
      if (most <= end) continue;
      end = rule_.seen_end(head_of(row), query_of(row), begin, most, end);
    }
    return end;
  }

  /// How many of a block's first n_keys keys have to be packed: 0 where the mask hides them all.
  int trim_block(sdpa_i64 begin, int n_keys) const {
    if (!rule_.has_mask()) return n_keys;
    SeenKeys seen[kRows];
    int end = 0;
    for (int tile = n_tiles_ - 1; tile >= 0 && end < n_keys; --tile) {
      look_at_block(tile, begin, n_keys, seen);
      end = seen_by_tile(tile, begin, seen, end);
    }
    return end;
  }

  /// Scores in log2 units, from the panel that holds the first key seen on.
  void apply_rule(int tile, sdpa_i64 begin, int first_key, int n_keys) {
    const int first = tile_begin(tile);
    const int first_column = first_key / kPanel * kPanel;
    for (int row = first; row < tile_begin(tile + 1); ++row) {
      rule_.apply(head_of(row), query_of(row), begin + first_column, n_keys - first_column,
                  entries_, scores_ + (row - first) * kScoreStep + first_column);
    }
  }

  /// The mask of a tile's rows and the block that begins at key `begin` comes near.
  void bring_masks(int tile, sdpa_i64 begin) const {
    const sdpa_i64 n_keys = smaller<sdpa_i64>(block_len_, end_key_ - begin);
    for (int row = tile_begin(tile); row < tile_begin(tile + 1); ++row) {
      rule_.bring_entries(head_of(row), query_of(row), begin, n_keys);
    }
  }

  void attend_tile(int tile, sdpa_i64 begin, int block_keys) {
    const int first = tile_begin(tile);
    const int n = tile_begin(tile + 1) - first;
    SeenKeys seen[kRows];
    const SeenKeys all = look_at_block(tile, begin, block_keys, seen);
    int n_keys = all.end;
    if (n_keys > 0 && rule_.has_mask()) {
      bring_masks(tile, begin + block_len_);
      n_keys = seen_by_tile(tile, begin, seen, 0);
      for (int r = 0; r < n; ++r) {
        const bool is_seen = seen[r].begin < n_keys;
        seen[r] = is_seen ? SeenKeys{seen[r].begin, smaller(seen[r].end, n_keys)} : SeenKeys{0, 0};
      }
    }
    if (n_keys <= all.begin) return;
    const auto products = products_of<T>(n);
    float factors[kStep];
    const int first_column = all.begin / kPanel * kPanel;
    products.score(queries(tile), k_ + sdpa_i64{first_column} * depth_, depth_,
                   n_keys - first_column, rule_.factor(), near_, scores_ + first_column);
    if (rule_.is_on()) apply_rule(tile, begin, all.begin, n_keys);
    softmax_tile<T>(scores_, seen, n, n_keys, pairs_block(), heavy(), states(tile), factors);
    float* numerators = numerators_ + sdpa_i64{first} * out_step();
    products.add_values(scores_, v_, slots_for<T>(n_keys), panel_depth_, kValueChain<T>, factors,
                        near_, numerators, out_vecs_);
    if constexpr (kPairs<T>) {
      for (int r = 0; r < n; ++r) {
        heavy()[r].add_values(v_, panel_depth_, out_vecs_, numerators + r * out_step());
      }
    }
  }

  RowTotal total(int row) { return {totals_ + row * RowTotal::slots(width()), width()}; }

  void reset_totals() {
    for (int r = 0; r < n_rows_; ++r) total(r).reset();
  }

  RowState state_of(int tile, int r) {
    const States& tile_states = states(tile);
    return {tile_states.maximum[r], tile_states.sum[r],
            numerators_ + sdpa_i64{tile_begin(tile) + r} * out_step()};
  }

  /// Calls run(row, tile, r) for every row, the r-th of its tile.
  template <typename Run>
  void for_each_row(const Run& run) {
    for (int tile = 0; tile < n_tiles_; ++tile) {
      const int begin = tile_begin(tile);
      for (int row = begin; row < tile_begin(tile + 1); ++row) run(row, tile, row - begin);
    }
  }

  /// Into the totals of the rows that see any key of the span; others must not even add a zero.
  void merge_span(sdpa_i64 span) {
    for_each_row([&](int row, int tile, int r) {
      if (sees_span(row, span)) total(row).merge(state_of(tile, r));
    });
  }

  /// The same into memory, for the item that comes last.
  void keep_span(sdpa_i64 span) {
    for_each_row([&](int row, int tile, int r) {
      if (!sees_span(row, span)) return;
      shared_.keep(span - first_span_, row_begin_ + row, state_of(tile, r), width());
    });
  }

  bool write_empty_rows(StopToken& stop) {
    for (int row = 0; row < n_rows_; ++row) finish(row, {-kInfinity, 0, kZeroRow}, stop);
    return true;
  }

  void write_shared_rows(StopToken& stop) {
    for (int row = 0; row < n_rows_; ++row) {
      const SpanRange spans = row_spans(row);
      const SpanRange kept{spans.begin - first_span_, spans.end - first_span_};
      finish(row, shared_.merge(row_begin_ + row, kept, total(0)), stop);
    }
  }

  void write_rows(StopToken& stop) {
    for_each_row([&](int row, int tile, int r) {
      finish(row, has_totals() ? total(row).state() : state_of(tile, r), stop);
    });
  }

  void finish(int row, const RowState& state, StopToken& stop) {
    finish_row<T>(launch_, {b_, head_of(row), query_of(row)}, state, band(row), rule_, stop);
  }

  const NativeLaunch& launch_;
  const SdpaArgs& args_;
  const SdpaSequence sequence_;
  const sdpa_i64 b_;
  const sdpa_i64 kv_h_;
  const sdpa_i64 row_begin_;  ///< among the L * group rows of the KV head
  const int n_rows_;
  const int group_;
  const int n_tiles_;
  const int depth_;     ///< slots of a row of q or k
  const int out_vecs_;  ///< vectors of a row of numerators
  const int block_len_;
  const SdpaBand keys_;        ///< that any row of the item sees
  const sdpa_i64 first_span_;  ///< that any row of the sequence sees
  const SpanRange spans_;      ///< that any row of the item sees, 1 at least
  const sdpa_i64 span_begin_;  ///< of this item's
  const sdpa_i64 span_end_;
  const sdpa_i64 end_key_;  ///< of this item
  const KeyRows<T> key_rows_;
  const KeyRows<T> value_rows_;
  const bool is_shared_;    ///< other items have spans that its rows see
  const sdpa_i64 counter_;  ///< of spans done by the items of these rows
  const SpanMemory shared_;
  const ScoreRule rule_;
  MaskEntries entries_;
  int panel_depth_ = 0;
  SpreadRows near_;

  const T** key_table_ = nullptr;    ///< rows of a block and the next
  const T** value_table_ = nullptr;  ///< the same
  float* q_ = nullptr;               ///< [tile][depth][kStep]; for AMX [tile][row][depth]
  float* k_ = nullptr;               ///< [panel][depth][kPanel]
  float* v_ = nullptr;               ///< [panel][panel_depth][kPanel]
  float* scores_ = nullptr;          ///< [kRows][kScoreStep], then weights
  float* states_ = nullptr;          ///< TileStates [n_tiles]
  float* numerators_ = nullptr;      ///< [n_rows][out_step]
  float* totals_ = nullptr;          ///< RowTotal [n_rows]
  float* block_ = nullptr;           ///< with pairs: PairsBlock
  float* heavy_ = nullptr;           ///< with pairs: HeavyPairs [kRows]
};

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
