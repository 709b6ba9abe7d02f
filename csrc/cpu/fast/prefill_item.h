// One work item of sdpa_prefill: its memory and its way through the keys.
#pragma once

#include "cpu/fast/finish_row.h"
#include "cpu/fast/prefill_amx.h"
#include "cpu/fast/prefill_softmax.h"
#include "cpu/fast/sdpa_prefill.h"
#include "cpu/fast/span_memory.h"
#include "cpu/fast/support.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// The part of a KV head's work that is one item's.
struct PrefillShare {
  sdpa_i64 row_begin;
  int n_rows;
  sdpa_i64 span_begin;
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
        n_spans_(larger<sdpa_i64>(spans_of(visible(n_rows_ - 1)), 1)),
        span_begin_(share.span_begin),
        span_end_(smaller(share.span_begin + share.n_spans, n_spans_)),
        end_key_(smaller(span_end_ * args_.span_len, visible(n_rows_ - 1))),
        is_shared_(n_spans_ > share.n_spans),
        counter_(share.counter),
        shared_(launch, b, kv_h) {}

  /// False when asked to stop, with no output written.
  bool run(StopToken& stop) {
    if (span_begin_ >= span_end_) return true;
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
    } else if (shared_.is_last(counter_, span_end_ - span_begin_, n_spans_)) {
      write_shared_rows(stop);
    }
    return true;
  }

 private:
  static constexpr int kRows = kTileRows<T>;
  static constexpr int kStep = kTileStep<T>;
  using States = TileStates<kStep>;

  /// Whether rows may see more than one span, all of them this item's.
  bool has_totals() const { return n_spans_ > 1 && !is_shared_; }

  /// Rows of the item from tile_begin(t) on are tile t: as even as can be.
  int tile_begin(int tile) const { return tile * n_rows_ / n_tiles_; }
  int width() const { return out_vecs_ * kLanes; }
  int out_step() const { return numerator_step(out_vecs_); }

  sdpa_i64 query_of(int row) const { return (row_begin_ + row) / group_; }
  sdpa_i64 head_of(int row) const { return kv_h_ * group_ + (row_begin_ + row) % group_; }
  sdpa_i64 visible(int row) const { return visible_keys(args_, sequence_, query_of(row)); }
  sdpa_i64 spans_of(sdpa_i64 keys) const { return (keys + args_.span_len - 1) / args_.span_len; }

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
    constexpr int kPlaces = 9;
    const sdpa_i64 slots[kPlaces] = {q_slots,    k_slots,   v_slots,     kRows * kScoreStep,
                                     tile_slots, out_slots, total_slots, block_slots,
                                     heavy_slots};
    float** const places[kPlaces] = {&q_,          &k_,      &v_,     &scores_, &states_,
                                     &numerators_, &totals_, &block_, &heavy_};
    constexpr sdpa_i64 kLine = 16;  // slots
    sdpa_i64 total = 0;
    for (const sdpa_i64 n : slots) total += (n + kLine - 1) / kLine * kLine;
    float* next = static_cast<float*>(thread_scratch(static_cast<std::size_t>(total) * 4));
    for (int i = 0; i < kPlaces; ++i) {
      *places[i] = next;
      next += (slots[i] + kLine - 1) / kLine * kLine;
    }
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
        rows[r] = is_row ? query_rows<T>(launch_, b_, head_of(row))[query_of(row)] : zero_row<T>();
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
    for (sdpa_i64 begin = span * args_.span_len; begin < end; begin += block_len_) {
      if (stop.stop_requested()) return false;
      attend_block(begin, static_cast<int>(smaller<sdpa_i64>(block_len_, end - begin)));
    }
    return true;
  }

  /// Keys begin..begin+n_keys, for all rows that see any of them.
  void attend_block(sdpa_i64 begin, int n_keys) {
    pack_keys<T>(key_rows<T>(launch_, b_, kv_h_), begin, n_keys, static_cast<int>(args_.head_dim),
                 k_);
    pack_values<T>(value_rows<T>(launch_, b_, kv_h_), begin, n_keys,
                   static_cast<int>(args_.value_dim), panel_depth_, v_);
    if constexpr (kPairs<T>) {
      describe_values(value_rows<T>(launch_, b_, kv_h_), begin, n_keys,
                      static_cast<int>(args_.value_dim), *pairs_block());
      spread_fractions(static_cast<std::uint32_t>(begin / block_len_), pairs_block()->fractions);
    }
    aim_at_next(begin + n_keys);
    // Around the tiles alone: the system's libraries know nothing of AMX's registers, and a thread
    // that is put aside with registers in use has 8 KB more to keep.
    [[maybe_unused]] const AmxScope<kUsesAmx<T>> scope;
    for (int tile = 0; tile < n_tiles_; ++tile) attend_tile(tile, begin, n_keys);
  }

  /// The block that begins at key `begin` comes near over the steps of one block's products.
  void aim_at_next(sdpa_i64 begin) {
    const sdpa_i64 n = smaller<sdpa_i64>(block_len_, end_key_ - begin);
    const sdpa_i64 k_steps = sdpa_i64{depth_} * ((block_len_ + kPanel - 1) / kPanel);
    const sdpa_i64 v_steps = sdpa_i64{slots_for<T>(block_len_)} * ((out_vecs_ + 1) / 2);
    const int tile_rows = (n_rows_ + n_tiles_ - 1) / n_tiles_;
    const int turns = kUsesAmx<T> || half_rows(tile_rows, 2) == tile_rows ? 1 : 2;
    near_.aim(memory_rows(key_rows<T>(launch_, b_, kv_h_), begin, n, args_.head_dim),
              memory_rows(value_rows<T>(launch_, b_, kv_h_), begin, n, args_.value_dim),
              n_tiles_ * turns * (k_steps + v_steps));
  }

  void attend_tile(int tile, sdpa_i64 begin, int block_keys) {
    const int first = tile_begin(tile);
    const int n = tile_begin(tile + 1) - first;
    int seen[kRows];
    for (int r = 0; r < n; ++r) {
      const sdpa_i64 keys = larger<sdpa_i64>(visible(first + r) - begin, 0);
      seen[r] = static_cast<int>(smaller<sdpa_i64>(keys, block_keys));
    }
    const int n_keys = seen[n - 1];  // later rows see no fewer
    if (n_keys == 0) return;
    const auto products = products_of<T>(n);
    float factors[kStep];
    products.score(queries(tile), k_, depth_, n_keys, args_.scale * kLog2E, near_, scores_);
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
      if (visible(row) > span * args_.span_len) total(row).merge(state_of(tile, r));
    });
  }

  /// The same into memory, for the item that comes last.
  void keep_span(sdpa_i64 span) {
    for_each_row([&](int row, int tile, int r) {
      if (visible(row) <= span * args_.span_len) return;
      shared_.keep(span, row_begin_ + row, state_of(tile, r), width());
    });
  }

  void write_shared_rows(StopToken& stop) {
    for (int row = 0; row < n_rows_; ++row) {
      write_row(row, shared_.merge(row_begin_ + row, spans_of(visible(row)), total(0)), stop);
    }
  }

  void write_rows(StopToken& stop) {
    for_each_row([&](int row, int tile, int r) {
      write_row(row, has_totals() ? total(row).state() : state_of(tile, r), stop);
    });
  }

  void write_row(int row, const RowState& state, StopToken& stop) {
    float* lse = lse_rows(launch_, b_, head_of(row));
    const sdpa_i64 query = query_of(row);
    finish_row<T>(
        args_, state,
        {query_rows<T>(launch_, b_, head_of(row))[query], key_rows<T>(launch_, b_, kv_h_),
         value_rows<T>(launch_, b_, kv_h_), visible(row),
         output_rows<T>(launch_, b_, head_of(row))[query], lse == nullptr ? nullptr : lse + query},
        stop);
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
  const sdpa_i64 n_spans_;  ///< that any row sees, 1 at least
  const sdpa_i64 span_begin_;
  const sdpa_i64 span_end_;
  const sdpa_i64 end_key_;  ///< of this item
  const bool is_shared_;    ///< other items have spans that its rows see
  const sdpa_i64 counter_;  ///< of spans done by the items of these rows
  const SpanMemory shared_;
  int panel_depth_ = 0;
  SpreadRows near_;

  float* q_ = nullptr;           ///< [tile][depth][kStep]; for AMX [tile][row][depth]
  float* k_ = nullptr;           ///< [panel][depth][kPanel]
  float* v_ = nullptr;           ///< [panel][panel_depth][kPanel]
  float* scores_ = nullptr;      ///< [kRows][kScoreStep], then weights
  float* states_ = nullptr;      ///< TileStates [n_tiles]
  float* numerators_ = nullptr;  ///< [n_rows][out_step]
  float* totals_ = nullptr;      ///< RowTotal [n_rows]
  float* block_ = nullptr;       ///< with pairs: PairsBlock
  float* heavy_ = nullptr;       ///< with pairs: HeavyPairs [kRows]
};

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
