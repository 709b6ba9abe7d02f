// Attention of one team: up to 16 packed rows of a KV head over a range of its keys, with Q, the
// scores and the numerators in registers. sdpa_decode and sdpa_prefill are built from it.
//
// Packed row r of KV head g is row r / G of query head g * G + r % G (G = Hq / Hkv), so the query
// heads of a KV head are rows of one matrix and each byte of K and V is read once for all of them.
//
// A tile of keys is one softmax update:
//   S^T = K Q^T   (keys x rows)     a lane reads 16 neighbouring bytes of a key, the A operand
//   P   = exp2(S - reference)^T     8x8 transposes by shuffles
//   O  += P V     (rows x Dv)       V is read as K is, and is the B operand
// Neither K nor V goes through threadgroup memory. A sum over head_dim may take its terms in any
// order: column k of fragment f of a chunk is element E * (k / 2) + 2 * f + k % 2 of the chunk
// (E = 16 / sizeof(T), chunks of 4 E elements), which is what makes a lane's elements neighbours.
//
// A large head_dim is shared out over the simdgroups of a team (slices): each has its part of the
// scores and exchanges it through threadgroup memory, one barrier a tile, and its part of O.
#ifndef METAL_SDPA_ATTENTION_TILE_H
#define METAL_SDPA_ATTENTION_TILE_H

#include <metal_stdlib>

#include "fragment.h"
#include "sdpa_args.h"
#include "sdpa_problem.h"
#include "sdpa_spans.h"
#include "sdpa_tiles.h"
#include "softmax_state.h"
#include "unroll.h"

constant bool padded_constant [[function_constant(SDPA_CONSTANT_PADDED)]];
constant bool padded = is_function_constant_defined(padded_constant) ? padded_constant : false;
constant bool partial_constant [[function_constant(SDPA_CONSTANT_PARTIAL)]];
constant bool write_partial =
    is_function_constant_defined(partial_constant) ? partial_constant : false;
constant bool write_output = !write_partial;
constant bool write_output_lse = write_lse && write_output;
/// Whether weights are summed unrounded too: for what compares rows or spans, which f32 precision
/// is promised for. Numerators are divided by the sum of the weights that they were made with.
constant bool sum_exactly = write_partial || write_output_lse;

namespace metal_sdpa {

/// Weights are at most 2 to this power: f16 weights down to 2^-38 of the largest then still count.
template <typename T>
constexpr float weight_exponent() {
  return 0.0f;
}
template <>
constexpr float weight_exponent<half>() {
  return 14.0f;
}

/// State of one row: reference, sum of the weights as rounded to T, sum of the unrounded ones.
struct TileRowState {
  float reference;
  float sum;
  float exact_sum;
};

/// The packed rows of a team: row_begin .. row_begin + count - 1 of one KV head's n_rows.
struct TeamRows {
  long first_query;  ///< row of the problem that packed row 0 belongs to
  int group;         ///< G
  int begin;
  int end;  ///< one past the last that exists

  long query(int packed) const { return first_query + uint(packed) / uint(group); }
  int head(int packed) const { return int(uint(packed) % uint(group)); }
  /// Offset of a packed row from row 0 of the KV head's first query head.
  long element(SdpaStrides stride, int packed) const {
    return head(packed) * stride.head + query(packed) * stride.row;
  }
};

/// The keys of a team: count of them (counted from its span's first) under one KV head.
template <typename T>
struct TeamKeys {
  device const T* k;  ///< first key of the span, at this lane's first element
  device const T* v;
  long k_row;
  long v_row;
  int count;
};

template <typename T, int kDim, bool kPrefill>
struct AttentionTile {
  enum {
    kBytes = sizeof(T),
    kSlices = sdpa_tile_slices(kPrefill, kBytes, kDim),
    kSliceDim = kDim / kSlices,
    kFragments = kSliceDim / 8,
    kLaneElements = 16 / kBytes,
    kChunkFragments = kLaneElements / 2,
    kChunkElements = 4 * kLaneElements,
    kChunks = kSliceDim / kChunkElements,
    kRows = sdpa_tile_rows(kPrefill, kBytes, kDim),
    kRowTiles = kRows / 8,
    kKeys = sdpa_tile_keys(kPrefill, kBytes, kDim),
    kKeyTiles = kKeys / 8,
    kScores = kRowTiles * kKeyTiles,
    kCompensated = kBytes == 4,
  };
  typedef metal::vec<T, 2> Pair;

  /// A tile of K or V.
  struct KeyTile {
    Pair pairs[kKeyTiles][kFragments];
  };

  LanePosition at;
  int slice_begin;  ///< first element of the slice
  int head_dim;
  float scale;  ///< to log2 units
  Pair q[kRowTiles][kFragments];
  float2 o[kRowTiles][kFragments];
  float2 o_compensation[kCompensated ? kRowTiles : 1][kCompensated ? kFragments : 1];
  float2 reference[kRowTiles];  ///< of the two rows of this lane's columns
  float2 sum[kRowTiles];        ///< of this lane's weights as rounded to T; unused in f32
  float2 exact_sum[kRowTiles];  ///< of this lane's unrounded weights; in f32, or with sum_exactly
  float2 exact_sum_compensation[kRowTiles];
  int visible[kRowTiles][2];  ///< keys that each of the two rows sees

  /// This lane's first element within chunk `chunk` of a row.
  int element(int chunk) const {
    return slice_begin + chunk * kChunkElements + at.pair * kLaneElements;
  }

  void init(int lane, int slice, thread const SdpaArgs& args) {
    at = lane_position(lane);
    slice_begin = slice * kSliceDim;
    head_dim = int(args.head_dim);
    scale = args.scale * kLog2E;
    SDPA_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      reference[r] = float2(-INFINITY);
      sum[r] = float2(0.0f);
      exact_sum[r] = float2(0.0f);
      exact_sum_compensation[r] = float2(0.0f);
      SDPA_UNROLL
      for (int f = 0; f < kFragments; ++f) {
        o[r][f] = float2(0.0f);
        if (kCompensated) o_compensation[r][f] = float2(0.0f);
      }
    }
  }

  /// Loads Q as K is loaded, for `transpose_q` to finish. What does not exist is 0.
  void load_q(device const T* q_head, thread const SdpaArgs& args, thread const TeamRows& rows) {
    SDPA_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      const int packed = rows.begin + 8 * r + at.row;
      const bool exists = packed < rows.end;
      device const T* row =
          q_head + rows.element(args.q_stride, exists ? packed : rows.begin) + element(0);
      load_row(row, exists, q[r]);
    }
  }

  void transpose_q() {
    SDPA_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      SDPA_UNROLL
      for (int f = 0; f < kFragments; ++f) q[r][f] = transposed(q[r][f], at);
    }
  }

  /// Sets what each row sees of the `count` keys from key `first_key` of the sequence.
  void set_visible(thread const SdpaArgs& args, SdpaSequence sequence, thread const TeamRows& rows,
                   long first_key, int count) {
    SDPA_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      SDPA_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int packed = rows.begin + 8 * r + 2 * at.pair + e;
        const long seen = visible_keys(args, sequence, rows.query(packed)) - first_key;
        visible[r][e] = int(metal::min(metal::max(seen, 0l), long(count)));
      }
    }
  }

  /// Loads this lane's pairs of one row; 0 where the row or the element does not exist.
  void load_row(device const T* row, bool exists, thread Pair* pairs) const {
    SDPA_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      if (exists && !(padded && element(c) >= head_dim)) {
        load_pairs(row + c * kChunkElements, &pairs[c * kChunkFragments]);
      } else {
        SDPA_UNROLL
        for (int f = 0; f < kChunkFragments; ++f) pairs[c * kChunkFragments + f] = Pair(T(0.0f));
      }
    }
  }

  /// Loads keys first .. first + kKeys - 1, of which at least one is under count; past the last,
  /// the last one again.
  void load(device const T* start, long row_stride, int first, int count,
            thread KeyTile& tile) const {
    SDPA_UNROLL
    for (int j = 0; j < kKeyTiles; ++j) {
      const int key = metal::min(first + 8 * j + at.row, count - 1);
      load_row(start + key * row_stride, true, tile.pairs[j]);
    }
  }

  /// This slice's part of S^T. Even and odd fragments are summed apart, so that a multiplication
  /// need not wait for the one before; in f32 blocks of 8 fragments are summed from zero: short
  /// chains of additions, not a long one.
  void multiply_scores(thread const KeyTile& k, thread float2 (&scores)[kRowTiles][kKeyTiles]) {
    SDPA_UNROLL
    for (int j = 0; j < kKeyTiles; ++j) {
      SDPA_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        float2 total = float2(0.0f);
        float2 even = float2(0.0f);
        float2 odd = float2(0.0f);
        SDPA_UNROLL
        for (int f = 0; f < kFragments; f += 2) {
          even = multiply_accumulate(k.pairs[j][f], q[r][f], even);
          odd = multiply_accumulate(k.pairs[j][f + 1], q[r][f + 1], odd);
          if (kCompensated && f % 8 == 6) {
            total = float2(total.x + (even.x + odd.x), total.y + (even.y + odd.y));
            even = float2(0.0f);
            odd = float2(0.0f);
          }
        }
        scores[r][j] = float2(total.x + (even.x + odd.x), total.y + (even.y + odd.y));
      }
    }
  }

  /// Leaves this slice's part of the scores for the others. `exchange` is this turn's buffer of the
  /// team: [slice][score][lane].
  void put_scores(thread float2 (&scores)[kRowTiles][kKeyTiles], threadgroup float2* exchange,
                  int slice, int lane) const {
    SDPA_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      SDPA_UNROLL
      for (int j = 0; j < kKeyTiles; ++j) {
        exchange[(slice * kScores + r * kKeyTiles + j) * 32 + lane] = scores[r][j];
      }
    }
  }

  /// The sum of all slices' parts, added in one order by all of them.
  void take_scores(thread float2 (&scores)[kRowTiles][kKeyTiles],
                   threadgroup const float2* exchange, int lane) const {
    SDPA_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      SDPA_UNROLL
      for (int j = 0; j < kKeyTiles; ++j) {
        float2 total = exchange[(r * kKeyTiles + j) * 32 + lane];
        SDPA_UNROLL
        for (int s = 1; s < kSlices; ++s) {
          const float2 part = exchange[(s * kScores + r * kKeyTiles + j) * 32 + lane];
          total = float2(total.x + part.x, total.y + part.y);
        }
        scores[r][j] = total;
      }
    }
  }

  /// Brings scores to log2 units, -inf where a row does not see the key. all_visible: every row
  /// sees every key of the tile.
  void mask_scores(thread float2 (&scores)[kRowTiles][kKeyTiles], int first, bool all_visible) {
    SDPA_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      SDPA_UNROLL
      for (int j = 0; j < kKeyTiles; ++j) {
        scores[r][j] = float2(scores[r][j].x * scale, scores[r][j].y * scale);
      }
    }
    if (all_visible) return;
    SDPA_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      SDPA_UNROLL
      for (int j = 0; j < kKeyTiles; ++j) {
        const int key = first + 8 * j + at.row;
        if (key >= visible[r][0]) scores[r][j].x = -INFINITY;
        if (key >= visible[r][1]) scores[r][j].y = -INFINITY;
      }
    }
  }

  static float2 product(float2 a, float2 b) { return float2(a.x * b.x, a.y * b.y); }

  /// Multiplies the state of row tile r by a power of two a row.
  void rescale(int r, float2 factor) {
    sum[r] = product(sum[r], factor);
    exact_sum[r] = product(exact_sum[r], factor);
    exact_sum_compensation[r] = product(exact_sum_compensation[r], factor);
    const float row_factor = element_of_row(factor, at);
    SDPA_UNROLL
    for (int f = 0; f < kFragments; ++f) {
      o[r][f] = float2(o[r][f].x * row_factor, o[r][f].y * row_factor);
      if (kCompensated) {
        const float2 c = o_compensation[r][f];
        o_compensation[r][f] = float2(c.x * row_factor, c.y * row_factor);
      }
    }
  }

  /// Raises the references of row tile r to what the scores ask for.
  void raise_reference(int r, thread float2 (&scores)[kRowTiles][kKeyTiles]) {
    float2 maximum = scores[r][0];
    SDPA_UNROLL
    for (int j = 1; j < kKeyTiles; ++j) {
      maximum =
          float2(metal::max(maximum.x, scores[r][j].x), metal::max(maximum.y, scores[r][j].y));
    }
    maximum = column_max(maximum);
    const float2 old = reference[r];
    const float2 next = float2(metal::max(old.x, metal::ceil(maximum.x) - weight_exponent<T>()),
                               metal::max(old.y, metal::ceil(maximum.y) - weight_exponent<T>()));
    reference[r] = next;
    if (!metal::simd_any(next.x != old.x || next.y != old.y)) return;
    rescale(r, float2(rescale_factor(old.x, next.x), rescale_factor(old.y, next.y)));
  }

  /// One softmax update: scores to weights, as the A operand of P V.
  void softmax(thread float2 (&scores)[kRowTiles][kKeyTiles],
               thread Pair (&weights)[kRowTiles][kKeyTiles]) {
    SDPA_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      raise_reference(r, scores);
      const float2 from = float2(subtrahend(reference[r].x), subtrahend(reference[r].y));
      float2 tile_exact_sum = float2(0.0f);
      SDPA_UNROLL
      for (int j = 0; j < kKeyTiles; ++j) {
        const float2 weight =
            float2(metal::exp2(scores[r][j].x - from.x), metal::exp2(scores[r][j].y - from.y));
        const Pair rounded = Pair(T(weight.x), T(weight.y));
        tile_exact_sum = float2(tile_exact_sum.x + weight.x, tile_exact_sum.y + weight.y);
        if (!kCompensated)
          sum[r] = float2(sum[r].x + float(rounded[0]), sum[r].y + float(rounded[1]));
        weights[r][j] = transposed(rounded, at);
      }
      if (kCompensated || sum_exactly) {
        compensated_add(exact_sum[r], exact_sum_compensation[r], tile_exact_sum);
      }
    }
  }

  /// O += P V. In f32 a tile is summed from zero and added with compensation.
  void multiply_values(thread const Pair (&weights)[kRowTiles][kKeyTiles],
                       thread const KeyTile& v) {
    SDPA_UNROLL
    for (int f = 0; f < kFragments; ++f) {
      SDPA_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        float2 total = kCompensated ? float2(0.0f) : o[r][f];
        SDPA_UNROLL
        for (int j = 0; j < kKeyTiles; ++j) {
          total = multiply_accumulate(weights[r][j], v.pairs[j][f], total);
        }
        if (kCompensated) {
          compensated_add(o[r][f], o_compensation[r][f], total);
        } else {
          o[r][f] = total;
        }
      }
    }
  }

  /// Sets to zero what `load` repeated past the last key: a weight of 0 times inf is NaN.
  void clear_past(int first, int count, thread KeyTile& v) const {
    SDPA_UNROLL
    for (int j = 0; j < kKeyTiles; ++j) {
      if (first + 8 * j + at.row < count) continue;
      SDPA_UNROLL
      for (int f = 0; f < kFragments; ++f) v.pairs[j][f] = Pair(T(0.0f));
    }
  }

  /// Keys of a team that is one simdgroup; k holds the first tile. The first n_all_visible keys
  /// are seen by every row. Loads are issued a step before what needs them, except V's in prefill,
  /// whose registers are full.
  void attend(thread const TeamKeys<T>& keys, int n_all_visible, thread KeyTile& k) {
    for (int first = 0; first < keys.count; first += kKeys) {
      float2 scores[kRowTiles][kKeyTiles];
      Pair weights[kRowTiles][kKeyTiles];
      KeyTile v;
      const int next = first + kKeys;
      if (!kPrefill) load(keys.v, keys.v_row, first, keys.count, v);
      multiply_scores(k, scores);
      if (!kPrefill && next < keys.count) load(keys.k, keys.k_row, next, keys.count, k);
      mask_scores(scores, first, first + kKeys <= n_all_visible);
      softmax(scores, weights);
      if (kPrefill) load(keys.v, keys.v_row, first, keys.count, v);
      if (first + kKeys > keys.count) clear_past(first, keys.count, v);
      multiply_values(weights, v);
      if (kPrefill) load(keys.k, keys.k_row, next, keys.count, k);
    }
  }

  /// Keys of a team of several simdgroups; k holds the first tile. All teams of the
  /// threadgroup take max_count / kKeys turns, since they meet at its barriers. `exchange` is the
  /// team's: two buffers, turn_stride apart. A buffer is written again two turns later, after the
  /// barrier of the turn between.
  void attend_sliced(thread const TeamKeys<T>& keys, int n_all_visible, int max_count,
                     threadgroup float2* exchange, int turn_stride, int slice, int lane,
                     thread KeyTile& k) {
    threadgroup float2* turn = exchange;
    threadgroup float2* other = exchange + turn_stride;
    KeyTile v;
    if (keys.count > 0) load(keys.v, keys.v_row, 0, keys.count, v);
    for (int first = 0; first < max_count; first += kKeys) {
      const bool active = first < keys.count;
      const int next = first + kKeys;
      float2 scores[kRowTiles][kKeyTiles];
      if (active) {
        multiply_scores(k, scores);
        put_scores(scores, turn, slice, lane);
        load(keys.k, keys.k_row, next, keys.count, k);
      }
      metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
      if (active) {
        Pair weights[kRowTiles][kKeyTiles];
        take_scores(scores, turn, lane);
        mask_scores(scores, first, first + kKeys <= n_all_visible);
        softmax(scores, weights);
        if (first + kKeys > keys.count) clear_past(first, keys.count, v);
        multiply_values(weights, v);
        load(keys.v, keys.v_row, next, keys.count, v);
      }
      threadgroup float2* const used = turn;
      turn = other;
      other = used;
    }
  }

  /// State of row at.row of row tile r.
  TileRowState row_state(int r) const {
    TileRowState state;
    state.reference = element_of_row(reference[r], at);
    if (kCompensated || sum_exactly) {
      state.exact_sum = element_of_row(column_sum(exact_sum[r]), at);
    }
    state.sum = kCompensated ? state.exact_sum : element_of_row(column_sum(sum[r]), at);
    return state;
  }

  /// Writes this slice's part of row at.row of row tile r as output.
  void store_output(int r, float row_sum, device T* row) const {
    const float inverse = inverse_of_sum(row_sum);
    SDPA_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      if (padded && element(c) >= head_dim) continue;
      SDPA_UNROLL
      for (int f = 0; f < kChunkFragments; ++f) {
        const float2 numerator = o[r][c * kChunkFragments + f];
        row[element(c) + 2 * f] = T(numerator.x * inverse);
        row[element(c) + 2 * f + 1] = T(numerator.y * inverse);
      }
    }
  }

  /// Writes this slice's part of row at.row of row tile r, times `factor`, as numerators of a
  /// state, whose rows start on 32 bytes.
  void store_numerators(int r, float factor, device float* row) const {
    SDPA_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      if (padded && element(c) >= head_dim) continue;
      device float4* target = reinterpret_cast<device float4*>(row + element(c));
      SDPA_UNROLL
      for (int f = 0; f < kChunkFragments; f += 2) {
        const float2 first = o[r][c * kChunkFragments + f];
        const float2 second = o[r][c * kChunkFragments + f + 1];
        target[f / 2] =
            float4(first.x * factor, first.y * factor, second.x * factor, second.y * factor);
      }
    }
  }
};

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

/// Writes the team's rows: the output, or the states of span `span`.
template <typename T, int kDim, bool kPrefill>
void store_rows(thread const AttentionTile<T, kDim, kPrefill>& tile,
                thread const AttentionBuffers<T>& buffers, thread const SdpaArgs& args,
                thread const TeamRows& rows, long b, long kv_h, long span) {
  SDPA_UNROLL
  for (int r = 0; r < AttentionTile<T, kDim, kPrefill>::kRowTiles; ++r) {
    const TileRowState state = tile.row_state(r);
    const int packed = rows.begin + 8 * r + tile.at.row;
    if (packed >= rows.end) continue;
    const long h = kv_h * rows.group + rows.head(packed);
    const long i = rows.query(packed);
    const long index = packed_row(args, b, h, i);
    const bool first_lane = tile.at.pair == 0 && tile.slice_begin == 0;
    if (write_partial) {
      const long state_index = index * long(args.n_spans) + span;
      // Numerators of the unrounded weights, since their sum is what spans are weighed by.
      const float factor =
          state.sum == state.exact_sum ? 1.0f : state.exact_sum * inverse_of_sum(state.sum);
      tile.store_numerators(r, factor, buffers.partial_o + state_index * tile.head_dim);
      if (first_lane) buffers.partial_ms[state_index] = float2(state.reference, state.exact_sum);
    } else {
      tile.store_output(r, state.sum,
                        buffers.out + head_start(args.out_offset, args.out_stride, b, h) +
                            i * args.out_stride.row);
      if (write_output_lse && first_lane) {
        buffers.lse[index] = log_sum_exp(state.reference, state.exact_sum);
      }
    }
  }
}

/// The body of sdpa_decode and sdpa_prefill: grid and teams as shaders/README.md says.
template <typename T, int kDim, bool kPrefill>
void attention(thread const AttentionBuffers<T>& buffers, thread const SdpaArgs& args,
               SdpaSequence sequence, threadgroup float2* exchange, uint3 group, int simdgroup,
               int lane) {
  typedef AttentionTile<T, kDim, kPrefill> Tile;
  const int slice = simdgroup % Tile::kSlices;
  const int team = simdgroup / Tile::kSlices;
  const int row_teams = int(args.group_split);
  const int span_teams = sdpa_tile_teams(kPrefill, Tile::kBytes, kDim) / row_teams;
  const int heads_per_kv = int(args.n_heads / args.n_kv_heads);
  const int n_rows = int(args.row_end - args.row_begin) * heads_per_kv;
  const int block_rows = Tile::kRows * row_teams;
  const int row_blocks = (n_rows + block_rows - 1) / block_rows;
  // Decode has one block and one row team, and waits for no division before its first load.
  int row_block = 0;
  int span_block = int(group.z);
  int row_team = 0;
  int span_team = team;
  if (row_blocks > 1) {
    // The last rows come first: under a causal mask they have the most keys.
    row_block = row_blocks - 1 - int(group.z) % row_blocks;
    span_block = int(group.z) / row_blocks;
  }
  if (row_teams > 1) {
    row_team = team % row_teams;
    span_team = team / row_teams;
  }
  const long first_span = long(args.span_begin) + long(span_block * span_teams);
  const long span = first_span + span_team;

  TeamRows rows;
  rows.first_query = args.row_begin;
  rows.group = heads_per_kv;
  rows.begin = row_block * block_rows + row_team * Tile::kRows;
  rows.end = metal::min(rows.begin + int(Tile::kRows), n_rows);

  const long span_keys = sdpa_span_keys(args.span_len, sequence.kv_len);
  const int block_last = metal::min((row_block + 1) * block_rows, n_rows) - 1;
  const long block_keys = visible_keys(args, sequence, rows.query(block_last));
  if (write_partial && first_span * span_keys >= block_keys) return;
  const long first_key = span * span_keys;
  const bool exists = rows.begin < rows.end && span < long(args.n_spans);
  long seen = 0;
  if (exists) seen = visible_keys(args, sequence, rows.query(rows.end - 1)) - first_key;

  const long b = long(args.batch_begin) + long(group.x);
  const long kv_h = long(int(args.head_begin) / heads_per_kv) + long(group.y);
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
  if (keys.count > 0) tile.load(keys.k, keys.k_row, 0, keys.count, first_tile);
  int n_all_visible = 0;
  if (exists) {
    tile.transpose_q();
    tile.set_visible(args, sequence, rows, first_key, keys.count);
    const long least = visible_keys(args, sequence, rows.query(rows.begin)) - first_key;
    n_all_visible = int(metal::min(metal::max(least, 0l), long(keys.count)));
  }
  if (Tile::kSlices == 1) {
    tile.attend(keys, n_all_visible, first_tile);
  } else {
    const int team_scores = Tile::kSlices * Tile::kScores * 32;
    const int teams = sdpa_tile_teams(kPrefill, Tile::kBytes, kDim);
    const long block_count = metal::max(block_keys - first_span * span_keys, 0l);
    tile.attend_sliced(keys, n_all_visible, int(metal::min(block_count, span_keys)),
                       exchange + team * team_scores, teams * team_scores, slice, lane, first_tile);
  }
  // A span in which none of the team's rows has a key is not read by the merge.
  if (exists && (write_output || keys.count > 0)) {
    store_rows(tile, buffers, args, rows, b, kv_h, span);
  }
}

}  // namespace metal_sdpa

#endif  // METAL_SDPA_ATTENTION_TILE_H
