// The body of sdpa_decode and sdpa_prefill: which rows and keys each team of a threadgroup takes,
// how teams that share rows add up their states, and where the sum is written.
#ifndef METAL_SDPA_ATTENTION_H
#define METAL_SDPA_ATTENTION_H

#include "attention_tile.h"
#include "row_repair.h"

namespace metal_sdpa {

/// The buffers of sdpa_decode and sdpa_prefill.
template <typename T>
struct AttentionBuffers {
  device const T* q;
  device const T* k;
  device const T* v;
  device T* out;
  device float* lse;
  device float* partial_o;
  device float2* partial_ms;
  device const uchar* mask;
  device const uchar* sinks;
  device const float* slopes;
  device const uchar* table;
};

/// Where a team stands in the grid: its span, its rows, and its share of both.
struct TeamPlace {
  SpanPlace span;
  TeamRows rows;
  int block_begin;  ///< packed rows of the threadgroup
  int block_end;
  int key_team;       ///< among those that share the rows
  int sharing_teams;  ///< a power of two

  bool has_rows() const { return rows.begin < rows.end; }
  long head(int packed) const { return span.kv_h * rows.group + rows.head(packed); }
};

/// Grid and teams as shaders/README.md says.
template <typename T, int kDim, bool kPrefill>
TeamPlace team_place(thread const SdpaArgs& args, SdpaWorkItem item, uint3 group, int team) {
  typedef AttentionTile<T, kDim, kPrefill> Tile;
  const int teams = sdpa_tile_teams(kPrefill, Tile::kBytes, kDim);
  const int row_teams = int(args.group_split);
  const int heads_per_kv = int(args.n_heads / args.n_kv_heads);
  const int n_queries = int(row_end_of(args, item.sequence) - args.row_begin);
  const int n_rows = n_queries * heads_per_kv;
  const int grid_rows = int(args.row_end - args.row_begin) * heads_per_kv;
  const int block_rows = Tile::kRows * row_teams;
  // A tile of decode has one block and one row team, and waits for no more division before its
  // first load.
  int row_block = 0;
  TeamPlace place;
  place.span.item = item;
  place.span.span = long(item.span) + long(group.z);
  place.sharing_teams = share_rows ? teams / row_teams : 1;
  int row_team = share_rows ? 0 : team;
  place.key_team = share_rows ? team : 0;
  if (grid_rows > block_rows) {
    const int row_blocks = int(uint(grid_rows + block_rows - 1) / uint(block_rows));
    // The last rows come first: under a causal mask they have the most keys.
    row_block = row_blocks - 1 - int(group.z) % row_blocks;
    place.span.span = long(item.span) + long(int(group.z) / row_blocks);
  }
  if (share_rows && row_teams > 1) {
    row_team = team % row_teams;
    place.key_team = team / row_teams;
  }
  place.block_begin = row_block * block_rows;
  place.block_end = metal::min(place.block_begin + block_rows, n_rows);
  place.rows.first_query = args.row_begin;
  place.rows.group = heads_per_kv;
  place.rows.one_query = !kPrefill && n_queries == 1;
  place.rows.begin = place.block_begin + row_team * Tile::kRows;
  place.rows.end = metal::min(place.rows.begin + int(Tile::kRows), n_rows);
  place.span.first_key = place.span.span * long(item.span_len);
  place.span.kv_h = long(group.y);
  if (kPrefill || args.head_begin > 0) {
    place.span.kv_h += long(int(args.head_begin) / heads_per_kv);
  }
  return place;
}

/// Keys of the span that some row of packed rows begin..end sees.
inline KeyRange keys_of_rows(thread const SdpaArgs& args, thread const TeamPlace& place, int begin,
                             int end) {
  const SdpaBand band = band_of_rows(args, place.span.item.sequence, place.rows.query(begin),
                                     place.rows.query(end - 1));
  return place.span.part_of(band);
}

/// The keys of the team's rows; none where it has no rows. `element`: the lane's first one.
template <typename T>
TeamKeys<T> keys_of_team(thread const AttentionBuffers<T>& buffers, thread const SdpaArgs& args,
                         thread const TeamPlace& place, int element) {
  const long b = long(place.span.item.batch_index);
  const long kv_h = place.span.kv_h;
  const long first_key = place.span.first_key;
  TeamKeys<T> keys;
  keys.any.begin = keys.any.end = 0;
  if (place.has_rows()) keys.any = keys_of_rows(args, place, place.rows.begin, place.rows.end);
  // Where none is seen there is none to repeat: a tile may have room behind where the band would
  // be.
  if (windowed && keys.any.begin >= keys.any.end) keys.any.begin = keys.any.end = 0;
  const SdpaSequence sequence = place.span.item.sequence;
  keys.k = key_rows(buffers.k, args.k_offset, args.k_stride, b, kv_h, sequence, first_key);
  keys.v = key_rows(buffers.v, args.v_offset, args.v_stride, b, kv_h, sequence, first_key);
  keys.k.start += element;
  keys.v.start += element;
  if (paged) keys.pages.init(buffers.table, args, sequence, first_key);
  return keys;
}

/// The first of the team's tiles. Which team takes a tile hangs on the tile alone.
template <int kKeys>
int first_tile_of(thread const TeamPlace& place, KeyRange keys) {
  if (!windowed) return place.key_team * kKeys;
  const int tile = keys.begin / kKeys;
  return (tile + ((place.key_team - tile) & (place.sharing_teams - 1))) * kKeys;
}

/// Element of the output where row `packed` begins.
inline long output_start(thread const SdpaArgs& args, thread const TeamPlace& place, int packed) {
  const long b = long(place.span.item.batch_index);
  return query_start(args.out_offset, args.out_stride, b, place.head(packed),
                     place.span.item.sequence) +
         place.rows.query(packed) * args.out_stride.row;
}

/// Index of row `packed` among the log-sum-exps or, where there are spans, of its state.
inline long state_index(thread const SdpaArgs& args, thread const TeamPlace& place, int packed) {
  const long h = place.head(packed);
  const long i = place.rows.query(packed);
  const SdpaWorkItem item = place.span.item;
  if (write_partial) return state_of(args, item, h, i, place.span.span);
  return lse_row(args, item.sequence, long(item.batch_index), h, i);
}

/// Row `packed` and its band of the span.
template <typename T>
BandKeys<T> band_keys(thread const AttentionBuffers<T>& buffers, thread const ScoreRule& rule,
                      thread const SdpaArgs& args, thread const TeamPlace& place, int packed) {
  const SdpaWorkItem item = place.span.item;
  const long b = long(item.batch_index);
  const long i = place.rows.query(packed);
  const long first_key = place.span.first_key;
  const KeyRange seen = place.span.part_of(band_of(args, item.sequence, i));
  BandKeys<T> keys;
  const long kv_h = place.span.kv_h;
  keys.q = buffers.q +
           query_start(args.q_offset, args.q_stride, b, kv_h * place.rows.group, item.sequence) +
           place.rows.element(args.q_stride, packed);
  keys.k = key_rows(buffers.k, args.k_offset, args.k_stride, b, kv_h, item.sequence, first_key);
  keys.v = key_rows(buffers.v, args.v_offset, args.v_stride, b, kv_h, item.sequence, first_key);
  if (paged) keys.pages.init(buffers.table, args, item.sequence, first_key);
  keys.begin = seen.begin;
  keys.end = seen.end;
  keys.rule = rule.row(args, item.sequence, b, place.head(packed), i, first_key);
  return keys;
}

/// The end of row `packed`, all of whose keys are in the state.
template <typename T>
RowFinish finish_of(thread const AttentionBuffers<T>& buffers, thread const SdpaArgs& args,
                    thread const TeamPlace& place, int packed, TileRowState state) {
  float sink = -INFINITY;
  if (has_sinks) sink = sink_of(buffers.sinks, args, place.head(packed));
  return finish_row(state.reference, state.sum, sink);
}

/// Writes row tile r: the output, or the state of a span. Returns the rows, one bit each, whose
/// numerators are not finite; they are left out. Rows with NaN scores are as they should be.
template <typename T, int kDim, bool kPrefill>
uint store_row_tile(thread const AttentionTile<T, kDim, kPrefill>& tile,
                    thread const AttentionBuffers<T>& buffers, thread const SdpaArgs& args,
                    thread const TeamPlace& place, int r, TileRowState state) {
  const int packed = place.rows.begin + 8 * r + tile.at.row;
  const bool exists = packed < place.rows.end;
  const bool special = exists && state.sum == state.sum && tile.has_special(r);
  const uint special_rows = metal::simd_any(special) ? rows_with(special, tile.at) : 0u;
  if (!exists) return special_rows;
  const bool good = (special_rows >> tile.at.row & 1u) == 0;
  const bool first_lane = tile.at.pair == 0 && tile.slice_begin == 0;
  const long index = state_index(args, place, packed);
  if (write_partial) {
    if (good) tile.store_numerators(r, buffers.partial_o + index * tile.head_dim);
    if (first_lane) buffers.partial_ms[index] = float2(state.reference, state.sum);
  } else {
    const RowFinish finish = finish_of(buffers, args, place, packed, state);
    if (good) {
      tile.store_output(r, finish, buffers.out, output_start(args, place, packed));
    }
    if (write_output_lse && first_lane) buffers.lse[index] = finish.lse;
  }
  return special_rows;
}

/// Works row `packed` out again, whose numerators are not finite.
template <int kWidth, typename T>
void repair(thread const AttentionBuffers<T>& buffers, thread const ScoreRule& rule,
            thread const SdpaArgs& args, thread const TeamPlace& place, int packed,
            TileRowState state, int first_column, int lane) {
  const BandKeys<T> keys = band_keys(buffers, rule, args, place, packed);
  const int head_dim = int(args.head_dim);
  if (write_partial) {
    device float* target = buffers.partial_o + state_index(args, place, packed) * head_dim;
    repair_row<kWidth>(keys, rule, state.reference, state.sum, 1.0f, target, head_dim, first_column,
                       lane);
    return;
  }
  const long start = output_start(args, place, packed);
  const RowFinish finish = finish_of(buffers, args, place, packed, state);
  const float sum = has_sinks ? state.sum * finish.keys : 1.0f;
  const float factor = has_sinks ? finish.inverse : 1.0f;
  if (out_is_f32) {
    device float* target = reinterpret_cast<device float*>(buffers.out) + start;
    repair_row<kWidth>(keys, rule, state.reference, sum, factor, target, head_dim, first_column,
                       lane);
  } else {
    repair_row<kWidth>(keys, rule, state.reference, sum, factor, buffers.out + start, head_dim,
                       first_column, lane);
  }
}

/// Writes the team's rows. One whose numerators are not finite is worked out again.
template <typename T, int kDim, bool kPrefill>
void store_rows(thread const AttentionTile<T, kDim, kPrefill>& tile,
                thread const AttentionBuffers<T>& buffers, thread const SdpaArgs& args,
                thread const TeamPlace& place, int lane) {
  typedef AttentionTile<T, kDim, kPrefill> Tile;
  enum { kRowTiles = Tile::kRowTiles };
  TileRowState states[kRowTiles];
  uint special_rows = 0;
  SDPA_UNROLL
  for (int r = 0; r < kRowTiles; ++r) {
    states[r] = tile.row_state(r);
    special_rows |= store_row_tile(tile, buffers, args, place, r, states[r]) << 8 * r;
  }
  SDPA_ROLLED
  for (int row = 0; special_rows >> row != 0; ++row) {
    if ((special_rows >> row & 1u) == 0) continue;
    TileRowState state = states[0];
    if (row >= 8) state = states[kRowTiles - 1];
    const ushort source = ushort(lane_at(row % 8, 0));
    state.reference = metal::simd_shuffle(state.reference, source);
    state.sum = metal::simd_shuffle(state.sum, source);
    repair<Tile::kSliceDim>(buffers, tile.rule, args, place, place.rows.begin + row, state,
                            tile.slice_begin, lane);
  }
}

/// Adds up the states of the teams that share rows, in the first of them; false in the others.
template <typename T, int kDim, bool kPrefill>
bool gather_states(thread AttentionTile<T, kDim, kPrefill>& tile, thread const TeamPlace& place,
                   threadgroup float2* exchange, int row_teams, int row_team, int lane) {
  typedef AttentionTile<T, kDim, kPrefill> Tile;
  // States of the teams but the first, [key_team - 1][row_team].
  threadgroup float2* const states = exchange + row_team * Tile::kStateFloat2s;
  const int stride = row_teams * Tile::kStateFloat2s;
  if (place.key_team > 0) tile.put_state(states + (place.key_team - 1) * stride, lane);
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  if (place.key_team > 0) return false;
  if (place.sharing_teams == 4) {
    tile.template add_states<3>(states, stride, lane);
  } else {
    tile.template add_states<1>(states, stride, lane);
  }
  return true;
}

/// The body of sdpa_decode and sdpa_prefill.
template <typename T, int kDim, bool kPrefill>
void attention(thread const AttentionBuffers<T>& buffers, thread const SdpaArgs& args,
               SdpaWorkItem item, threadgroup float2* exchange, uint3 group, int simdgroup,
               int lane) {
  typedef AttentionTile<T, kDim, kPrefill> Tile;
  const int slice = simdgroup % Tile::kSlices;
  const int team = simdgroup / Tile::kSlices;
  const TeamPlace place = team_place<T, kDim, kPrefill>(args, item, group, team);
  // The dispatch has blocks for the sequence with the most rows.
  if (work_list && place.block_begin >= place.block_end) return;
  const KeyRange block = keys_of_rows(args, place, place.block_begin, place.block_end);
  if (write_partial && block.begin >= block.end) return;
  const bool exists = place.has_rows();
  Tile tile;
  tile.init(lane, slice, args);
  if (has_mask) tile.rule.mask = buffers.mask;
  if (alibi) tile.rule.slopes = buffers.slopes;
  TeamKeys<T> keys = keys_of_team(buffers, args, place, tile.element(0));
  // The first loads, all under way at a time; Q first, since it is to be transposed.
  if (exists) {
    device const T* q_head =
        buffers.q + query_start(args.q_offset, args.q_stride, long(item.batch_index),
                                place.span.kv_h * place.rows.group, item.sequence);
    tile.load_q(q_head, args, place.rows);
  }
  typename Tile::KeyTile first_tile;
  int first = first_tile_of<Tile::kKeys>(place, Tile::kSlices == 1 ? keys.any : block);
  const int step = place.sharing_teams * Tile::kKeys;
  uint seen = 0;
  const bool early = !masked && first < keys.any.end && first + Tile::kKeys > keys.any.begin;
  if (early) tile.load_first(keys, first, first_tile);
  if (exists) {
    tile.transpose_q();
    tile.set_rows(args, place.span, place.rows);
    keys.all =
        place.span.part_of(band_of_all(args, item.sequence, place.rows.query(place.rows.begin),
                                       place.rows.query(place.rows.end - 1)));
  }
  if (Tile::kSlices == 1) {
    if (masked) {
      first = tile.next_seen(keys, first, step, seen);
      if (first < keys.any.end) tile.load_first(keys, first, first_tile);
    }
    tile.attend(keys, first, step, seen, first_tile);
    const int row_team = team % int(args.group_split);
    if (share_rows &&
        !gather_states(tile, place, exchange, int(args.group_split), row_team, lane)) {
      return;
    }
  } else {
    if (masked && tile.is_seen(keys, first, seen)) {
      tile.load_first(keys, first, first_tile);
    }
    const int teams = sdpa_tile_teams(kPrefill, Tile::kBytes, kDim);
    const int team_scores = Tile::kSlices * Tile::kScores * 32;
    tile.attend_sliced(keys, first, block.end, seen, exchange + team * team_scores,
                       teams * team_scores, slice, lane, first_tile);
  }
  // A span in which none of the team's rows has a key is not read by the merge.
  if (exists && (write_output || keys.any.begin < keys.any.end)) {
    store_rows(tile, buffers, args, place, lane);
  }
}

}  // namespace metal_sdpa

#endif  // METAL_SDPA_ATTENTION_H
