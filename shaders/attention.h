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
};

/// What a team has: rows of one KV head of one sequence, and the keys of one span.
struct TeamPlace {
  SdpaWorkItem item;  ///< the sequence
  long kv_h;
  long span;
  long first_key;  ///< of the span
};

/// Element of the output where row `packed` begins.
inline long output_start(thread const SdpaArgs& args, thread const TeamPlace& place,
                         thread const TeamRows& rows, int packed) {
  const long h = place.kv_h * rows.group + rows.head(packed);
  return head_start(args.out_offset, args.out_stride, long(place.item.batch_index), h) +
         rows.query(packed) * args.out_stride.row;
}

/// Index of row `packed` among the log-sum-exps or, where there are spans, of its state.
inline long state_index(thread const SdpaArgs& args, thread const TeamPlace& place,
                        thread const TeamRows& rows, int packed) {
  const long h = place.kv_h * rows.group + rows.head(packed);
  const long i = rows.query(packed);
  if (write_partial) return first_state(args, place.item, h, i) + place.span;
  return packed_row(args, long(place.item.batch_index), h, i);
}

/// Row `packed` and the keys of the span that it sees.
template <typename T>
SeenKeys<T> seen_keys(thread const AttentionBuffers<T>& buffers, thread const SdpaArgs& args,
                      thread const TeamPlace& place, thread const TeamRows& rows, int packed) {
  const long b = long(place.item.batch_index);
  SeenKeys<T> keys;
  keys.q = buffers.q + head_start(args.q_offset, args.q_stride, b, place.kv_h * rows.group) +
           rows.element(args.q_stride, packed);
  keys.k = buffers.k + head_start(args.k_offset, args.k_stride, b, place.kv_h) +
           place.first_key * args.k_stride.row;
  keys.v = buffers.v + head_start(args.v_offset, args.v_stride, b, place.kv_h) +
           place.first_key * args.v_stride.row;
  keys.k_row = args.k_stride.row;
  keys.v_row = args.v_stride.row;
  const long seen = visible_keys(args, place.item.sequence, rows.query(packed)) - place.first_key;
  keys.count = metal::min(seen, long(place.item.span_len));
  return keys;
}

/// Writes row tile r: the output, or the state of a span. Returns the rows, one bit each, whose
/// numerators are not finite; they are left out. Rows with NaN scores are as they should be.
template <typename T, int kDim, bool kPrefill>
uint store_row_tile(thread const AttentionTile<T, kDim, kPrefill>& tile,
                    thread const AttentionBuffers<T>& buffers, thread const SdpaArgs& args,
                    thread const TeamPlace& place, thread const TeamRows& rows, int r,
                    TileRowState state) {
  const int packed = rows.begin + 8 * r + tile.at.row;
  const bool exists = packed < rows.end;
  const bool special = exists && state.sum == state.sum && tile.has_special(r);
  const uint special_rows = metal::simd_any(special) ? rows_with(special, tile.at) : 0u;
  if (!exists) return special_rows;
  const bool good = (special_rows >> tile.at.row & 1u) == 0;
  const bool first_lane = tile.at.pair == 0 && tile.slice_begin == 0;
  const long index = state_index(args, place, rows, packed);
  if (write_partial) {
    if (good) tile.store_numerators(r, buffers.partial_o + index * tile.head_dim);
    if (first_lane) buffers.partial_ms[index] = float2(state.reference, state.sum);
  } else {
    if (good) {
      tile.store_output(r, state.sum, buffers.out + output_start(args, place, rows, packed));
    }
    if (write_output_lse && first_lane) {
      buffers.lse[index] = log_sum_exp(state.reference, state.sum);
    }
  }
  return special_rows;
}

/// Writes the team's rows. One whose numerators are not finite is worked out again.
template <typename T, int kDim, bool kPrefill>
void store_rows(thread const AttentionTile<T, kDim, kPrefill>& tile,
                thread const AttentionBuffers<T>& buffers, thread const SdpaArgs& args,
                thread const TeamPlace& place, thread const TeamRows& rows, int lane) {
  typedef AttentionTile<T, kDim, kPrefill> Tile;
  enum { kRowTiles = Tile::kRowTiles };
  TileRowState states[kRowTiles];
  uint special_rows = 0;
  SDPA_UNROLL
  for (int r = 0; r < kRowTiles; ++r) {
    states[r] = tile.row_state(r);
    special_rows |= store_row_tile(tile, buffers, args, place, rows, r, states[r]) << 8 * r;
  }
  SDPA_ROLLED
  for (int row = 0; special_rows >> row != 0; ++row) {
    if ((special_rows >> row & 1u) == 0) continue;
    TileRowState state = states[0];
    if (row >= 8) state = states[kRowTiles - 1];
    const ushort source = ushort(lane_at(row % 8, 0));
    state.reference = metal::simd_shuffle(state.reference, source);
    state.sum = metal::simd_shuffle(state.sum, source);
    const int packed = rows.begin + row;
    const SeenKeys<T> keys = seen_keys(buffers, args, place, rows, packed);
    const int head_dim = int(args.head_dim);
    if (write_partial) {
      device float* target = buffers.partial_o + state_index(args, place, rows, packed) * head_dim;
      repair_row<Tile::kSliceDim>(keys, args.scale, state.reference, state.sum, target, head_dim,
                                  tile.slice_begin, lane);
    } else {
      device T* target = buffers.out + output_start(args, place, rows, packed);
      repair_row<Tile::kSliceDim>(keys, args.scale, state.reference, 1.0f, target, head_dim,
                                  tile.slice_begin, lane);
    }
  }
}

/// The body of sdpa_decode and sdpa_prefill: grid and teams as shaders/README.md says.
template <typename T, int kDim, bool kPrefill>
void attention(thread const AttentionBuffers<T>& buffers, thread const SdpaArgs& args,
               SdpaWorkItem item, threadgroup float2* exchange, uint3 group, int simdgroup,
               int lane) {
  const SdpaSequence sequence = item.sequence;
  typedef AttentionTile<T, kDim, kPrefill> Tile;
  const int slice = simdgroup % Tile::kSlices;
  const int team = simdgroup / Tile::kSlices;
  const int teams = sdpa_tile_teams(kPrefill, Tile::kBytes, kDim);
  const int row_teams = int(args.group_split);
  const int sharing_teams = share_rows ? teams / row_teams : 1;
  const int heads_per_kv = int(args.n_heads / args.n_kv_heads);
  const int n_queries = int(args.row_end - args.row_begin);
  const int n_rows = n_queries * heads_per_kv;
  const int block_rows = Tile::kRows * row_teams;
  // A tile of decode has one block and one row team, and waits for no more division before its
  // first load.
  int row_block = 0;
  TeamPlace place;
  place.item = item;
  place.span = long(item.span) + long(group.z);
  int row_team = share_rows ? 0 : team;
  int key_team = share_rows ? team : 0;  // among those that share the rows
  if (n_rows > block_rows) {
    const int row_blocks = int(uint(n_rows + block_rows - 1) / uint(block_rows));
    // The last rows come first: under a causal mask they have the most keys.
    row_block = row_blocks - 1 - int(group.z) % row_blocks;
    place.span = long(item.span) + long(int(group.z) / row_blocks);
  }
  if (share_rows && row_teams > 1) {
    row_team = team % row_teams;
    key_team = team / row_teams;
  }

  TeamRows rows;
  rows.first_query = args.row_begin;
  rows.group = heads_per_kv;
  rows.one_query = !kPrefill && n_queries == 1;
  rows.begin = row_block * block_rows + row_team * Tile::kRows;
  rows.end = metal::min(rows.begin + int(Tile::kRows), n_rows);

  const long span_keys = long(item.span_len);
  const int block_last = metal::min((row_block + 1) * block_rows, n_rows) - 1;
  const long block_keys = visible_keys(args, sequence, rows.query(block_last));
  const long first_key = place.span * span_keys;
  place.first_key = first_key;
  if (write_partial && first_key >= block_keys) return;
  const bool exists = rows.begin < rows.end;
  long seen = 0;
  if (exists) seen = visible_keys(args, sequence, rows.query(rows.end - 1)) - first_key;

  const long b = long(item.batch_index);
  long kv_h = long(group.y);
  if (kPrefill || args.head_begin > 0) kv_h += long(int(args.head_begin) / heads_per_kv);
  place.kv_h = kv_h;
  TeamKeys<T> keys;
  keys.count = int(metal::min(metal::max(seen, 0l), span_keys));
  keys.k_row = args.k_stride.row;
  keys.v_row = args.v_stride.row;
  Tile tile;
  tile.init(lane, slice, args);
  keys.k = buffers.k + head_start(args.k_offset, args.k_stride, b, kv_h) + first_key * keys.k_row +
           tile.element(0);
  keys.v = buffers.v + head_start(args.v_offset, args.v_stride, b, kv_h) + first_key * keys.v_row +
           tile.element(0);
  // The first loads, all under way at a time; Q first, since it is to be transposed.
  if (exists) {
    device const T* q_head =
        buffers.q + head_start(args.q_offset, args.q_stride, b, kv_h * heads_per_kv);
    tile.load_q(q_head, args, rows);
  }
  typename Tile::KeyTile first_tile;
  const int begin = key_team * Tile::kKeys;
  if (keys.count > begin) tile.load(keys.k, keys.k_row, begin, keys.count, first_tile);
  int n_all_visible = 0;
  if (exists) {
    tile.transpose_q();
    tile.set_visible(args, sequence, rows, first_key, keys.count);
    const long least = visible_keys(args, sequence, rows.query(rows.begin)) - first_key;
    n_all_visible = int(metal::min(metal::max(least, 0l), long(keys.count)));
  }
  if (Tile::kSlices == 1) {
    tile.attend(keys, n_all_visible, begin, sharing_teams, first_tile);
    if (share_rows) {
      // States of the teams but the first, [key_team - 1][row_team].
      threadgroup float2* const states = exchange + row_team * Tile::kStateFloat2s;
      const int key_team_stride = row_teams * Tile::kStateFloat2s;
      if (key_team > 0) tile.put_state(states + (key_team - 1) * key_team_stride, lane);
      metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
      if (key_team > 0) return;
      if (sharing_teams == 4) {
        tile.template add_states<3>(states, key_team_stride, lane);
      } else {
        tile.template add_states<1>(states, key_team_stride, lane);
      }
    }
  } else {
    const int team_scores = Tile::kSlices * Tile::kScores * 32;
    const long block_count = metal::max(block_keys - first_key, 0l);
    tile.attend_sliced(keys, n_all_visible, int(metal::min(block_count, span_keys)),
                       exchange + team * team_scores, teams * team_scores, slice, lane, first_tile);
  }
  // A span in which none of the team's rows has a key is not read by the merge.
  if (exists && (write_output || keys.count > 0)) {
    store_rows(tile, buffers, args, place, rows, lane);
  }
}

}  // namespace metal_sdpa

#endif  // METAL_SDPA_ATTENTION_H
