// Attention of one team: up to 16 packed rows of a KV head over a range of its keys, with Q, the
// scores and the numerators in registers. sdpa_decode and sdpa_prefill are built from it.
//
// Packed row r of KV head g is row r / G of query head g * G + r % G (G = Hq / Hkv), so the query
// heads of a KV head are rows of one matrix and each byte of K and V is read once for all of them.
//
// A tile of keys is one softmax update:
//   S^T = K Q^T   (keys x rows)     a lane reads 16 neighbouring bytes of a key, the A operand
//   P   = weights of S, transposed  8x8 transposes by shuffles
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
#include "row_finish.h"
#include "score_rule.h"
#include "sdpa_args.h"
#include "sdpa_problem.h"
#include "sdpa_spans.h"
#include "sdpa_tiles.h"
#include "softmax_state.h"
#include "team_keys.h"
#include "unroll.h"

constant bool padded_constant [[function_constant(SDPA_CONSTANT_PADDED)]];
constant bool padded = is_function_constant_defined(padded_constant) ? padded_constant : false;
constant bool shared_constant [[function_constant(SDPA_CONSTANT_SHARED)]];
constant bool share_rows = is_function_constant_defined(shared_constant) ? shared_constant : false;

namespace metal_sdpa {

/// State of one row but for its numerators, as softmax_state.h has it.
struct TileRowState {
  float reference;
  float sum;
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
    kTileTotals = kCompensated || kPrefill,
    kStateFields = kFragments + 2,
    kStateFloat2s = sdpa_tile_state_bytes(kPrefill, kBytes, kDim) / 8,
    kScoreChain = kCompensated ? 2 : 3,
    kScoreChains = kPrefill ? 1 : 2,
    kScoreBlock = kScoreChain * kScoreChains,
    kValueBlock = 2,
  };
  typedef metal::vec<T, 2> Pair;

  /// A tile of K or V.
  struct KeyTile {
    Pair pairs[kKeyTiles][kFragments];
  };

  LanePosition at;
  int slice_begin;  ///< first element of the slice
  int head_dim;
  ScoreRule rule;
  Pair q[kRowTiles][kFragments];
  float2 o[kRowTiles][kFragments];
  float2 o_compensation[kCompensated ? kRowTiles : 1][kCompensated ? kFragments : 1];
  float2 reference[kRowTiles];  ///< of the two rows of this lane's columns
  float2 sum[kRowTiles];        ///< of this lane's weights
  float2 sum_compensation[kRowTiles];
  KeyRange band[kRowTiles][2];  ///< keys that each of the two rows sees, before a mask
  RowRule row_rule[kRowTiles][2];

  /// This lane's first element within chunk `chunk` of a row.
  int element(int chunk) const {
    return slice_begin + chunk * kChunkElements + at.pair * kLaneElements;
  }

  void init(int lane, int slice, thread const SdpaArgs& args) {
    at = lane_position(lane);
    slice_begin = slice * kSliceDim;
    head_dim = int(args.head_dim);
    rule.init(args);
    SDPA_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      reference[r] = float2(-INFINITY);
      sum[r] = float2(0.0f);
      sum_compensation[r] = float2(0.0f);
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

  /// Sets what each of this lane's rows sees of a team's span, and what its scores become. A row
  /// that does not exist is the last one again: what it reads is there.
  void set_rows(thread const SdpaArgs& args, thread const SpanPlace& span,
                thread const TeamRows& rows) {
    SDPA_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      SDPA_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int packed = metal::min(rows.begin + 8 * r + 2 * at.pair + e, rows.end - 1);
        const SdpaSequence sequence = span.item.sequence;
        const long i = rows.query(packed);
        band[r][e] = span.part_of(band_of(args, sequence, i));
        if (!alibi && !has_mask) continue;
        const long h = span.kv_h * rows.group + rows.head(packed);
        row_rule[r][e] =
            rule.row(args, sequence, long(span.item.batch_index), h, i, span.first_key);
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

  /// Loads keys first .. first + kKeys - 1 of a team, which lie at `place`; at least one is in use.
  /// Past the last it is the last one again, before the first, that one.
  void load(thread const KeyRows<T>& rows, thread const TeamKeys<T>& keys, TilePlace place,
            int first, thread KeyTile& tile) const {
    SDPA_UNROLL
    for (int j = 0; j < kKeyTiles; ++j) {
      const int key = keys.used(first + 8 * j + at.row);
      load_row(keys.template row<kKeys>(rows, place, key), true, tile.pairs[j]);
    }
  }

  /// The first tile of K.
  void load_first(thread const TeamKeys<T>& keys, int first, thread KeyTile& tile) const {
    load(keys.k, keys, keys.template place_of<kKeys>(first), first, tile);
  }

  /// This slice's part of S^T, in chains of kScoreChain matrix products from zero: a long chain of
  /// additions may round the same way all along. Decode, with few scores at a time, has two chains
  /// under way, so that a multiplication need not wait for the one before.
  ///
  /// Roundings that a score may gather, each at most u = 2^-24 of |q| |k|: 8 kScoreChain in a
  /// chain, one for each block of kScoreChains chains but the first, one where a block has two, and
  /// one for every second slice: in f32 19 at D 64, 20 at D 128, 24 at D 576, in 16 bits 27, 30 and
  /// at most 34 (D 256, prefill). Equal elements, which round alike, lose a quarter of a chain, 4 u
  /// (6 u). metal_accuracy_test looks for worse.
  void multiply_scores(thread const KeyTile& k, thread float2 (&scores)[kRowTiles][kKeyTiles]) {
    SDPA_UNROLL
    for (int j = 0; j < kKeyTiles; ++j) {
      SDPA_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        float2 total = float2(0.0f);
        float2 chains[kScoreChains];
        SDPA_UNROLL
        for (int f = 0; f < kFragments; ++f) {
          const int c = f % kScoreChains;
          if (f % kScoreBlock < kScoreChains) chains[c] = float2(0.0f);
          chains[c] = multiply_accumulate(k.pairs[j][f], q[r][f], chains[c]);
          if ((f + 1) % kScoreBlock != 0 && f + 1 < kFragments) continue;
          float2 sum = chains[0];
          if (kScoreChains == 2) sum = float2(sum.x + chains[c].x, sum.y + chains[c].y);
          total = f < kScoreBlock ? sum : float2(total.x + sum.x, total.y + sum.y);
        }
        scores[r][j] = total;
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

  /// The sum of all slices' parts, even and odd ones apart, added in one order by all of them.
  void take_scores(thread float2 (&scores)[kRowTiles][kKeyTiles],
                   threadgroup const float2* exchange, int lane) const {
    SDPA_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      SDPA_UNROLL
      for (int j = 0; j < kKeyTiles; ++j) {
        float2 even = exchange[(r * kKeyTiles + j) * 32 + lane];
        float2 odd = float2(0.0f);
        SDPA_UNROLL
        for (int s = 1; s < kSlices; ++s) {
          const float2 part = exchange[(s * kScores + r * kKeyTiles + j) * 32 + lane];
          if (s == 1) {
            odd = part;
          } else if (s % 2 == 0) {
            even = float2(even.x + part.x, even.y + part.y);
          } else {
            odd = float2(odd.x + part.x, odd.y + part.y);
          }
        }
        scores[r][j] = float2(even.x + odd.x, even.y + odd.y);
      }
    }
  }

  /// The first tile from `first` on, every `step`-th key, that some row sees a key of; at or past
  /// the last key where there is none. `seen`: what a boolean mask leaves of it.
  int next_seen(thread const TeamKeys<T>& keys, int first, int step, thread uint& seen) const {
    if (!masked) return first;
    SDPA_ROLLED
    for (; first < keys.any.end; first += step) {
      seen = seen_by_mask(keys, first);
      if (metal::simd_any(seen != 0)) break;
    }
    return first;
  }

  /// Whether some row sees a key of the tile.
  bool is_seen(thread const TeamKeys<T>& keys, int first, thread uint& seen) const {
    if (first >= keys.any.end || (windowed && first + kKeys <= keys.any.begin)) return false;
    if (!masked) return true;
    seen = seen_by_mask(keys, first);
    return metal::simd_any(seen != 0);
  }

  /// Which of this lane's scores of a tile a boolean mask and the bands leave: bit
  /// (r * kKeyTiles + j) * 2 + e.
  uint seen_by_mask(thread const TeamKeys<T>& keys, int first) const {
    uint seen = 0;
    SDPA_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      SDPA_UNROLL
      for (int e = 0; e < 2; ++e) {
        SDPA_UNROLL
        for (int j = 0; j < kKeyTiles; ++j) {
          const int key = first + 8 * j + at.row;
          const bool lets_see = rule.lets_see(row_rule[r][e], mask_column(keys, key));
          if (lets_see && in_band(r, e, key)) seen |= 1u << ((r * kKeyTiles + j) * 2 + e);
        }
      }
    }
    return seen;
  }

  bool in_band(int r, int e, int key) const {
    return key < band[r][e].end && (!windowed || key >= band[r][e].begin);
  }

  /// A key whose mask there is to read, for one that may be past the last.
  static long mask_column(thread const TeamKeys<T>& keys, int key) {
    return long(metal::min(key, keys.any.end - 1));
  }

  /// What all of a tile's scores become but for what hides keys.
  void transform_scores(thread float2 (&scores)[kRowTiles][kKeyTiles],
                        thread const TeamKeys<T>& keys, int first) const {
    SDPA_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      SDPA_UNROLL
      for (int j = 0; j < kKeyTiles; ++j) {
        scores[r][j] = float2(rule.scaled(scores[r][j].x), rule.scaled(scores[r][j].y));
        if (!alibi) continue;
        const long key = first + 8 * j + at.row;
        scores[r][j] = float2(scores[r][j].x - rule.penalty(row_rule[r][0], key),
                              scores[r][j].y - rule.penalty(row_rule[r][1], key));
      }
    }
    if (!biased) return;
    if (rule.mask_kind == SDPA_ELEMENT_F16) {
      add_bias<half>(scores, keys, first);
    } else if (rule.mask_kind == SDPA_ELEMENT_BF16) {
      add_bias<bfloat>(scores, keys, first);
    } else {
      add_bias<float>(scores, keys, first);
    }
  }

  template <typename Bias>
  void add_bias(thread float2 (&scores)[kRowTiles][kKeyTiles], thread const TeamKeys<T>& keys,
                int first) const {
    device const Bias* bias = reinterpret_cast<device const Bias*>(rule.mask);
    SDPA_UNROLL
    for (int j = 0; j < kKeyTiles; ++j) {
      const long column = mask_column(keys, first + 8 * j + at.row) * rule.mask_key;
      SDPA_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        scores[r][j] = float2(plus_bias(scores[r][j].x, float(bias[row_rule[r][0].mask + column])),
                              plus_bias(scores[r][j].y, float(bias[row_rule[r][1].mask + column])));
      }
    }
  }

  /// Makes scores of products; -inf where a row does not see the key. `seen` is what a boolean mask
  /// leaves.
  void apply_rule(thread float2 (&scores)[kRowTiles][kKeyTiles], thread const TeamKeys<T>& keys,
                  int first, uint seen) const {
    transform_scores(scores, keys, first);
    const bool all_seen = first + kKeys <= keys.all.end && (!windowed || first >= keys.all.begin);
    if (!masked && all_seen) return;
    SDPA_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      SDPA_UNROLL
      for (int j = 0; j < kKeyTiles; ++j) {
        const int key = first + 8 * j + at.row;
        const int bit = (r * kKeyTiles + j) * 2;
        if (masked ? (seen >> bit & 1u) == 0 : !in_band(r, 0, key)) scores[r][j].x = -INFINITY;
        if (masked ? (seen >> bit & 2u) == 0 : !in_band(r, 1, key)) scores[r][j].y = -INFINITY;
      }
    }
  }

  static float2 product(float2 a, float2 b) { return float2(a.x * b.x, a.y * b.y); }

  /// Multiplies the state of row tile r by a factor a row.
  void rescale(int r, float2 factor) {
    sum[r] = product(sum[r], factor);
    sum_compensation[r] = product(sum_compensation[r], factor);
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

  /// Raises the references of row tile r to what the scores ask for. A NaN does not raise them.
  void raise_reference(int r, thread float2 (&scores)[kRowTiles][kKeyTiles]) {
    float2 maximum = scores[r][0];
    SDPA_UNROLL
    for (int j = 1; j < kKeyTiles; ++j) {
      maximum =
          float2(metal::max(maximum.x, scores[r][j].x), metal::max(maximum.y, scores[r][j].y));
    }
    maximum = column_max(maximum);
    const float2 old = reference[r];
    if (!metal::simd_any(maximum.x > old.x || maximum.y > old.y)) return;
    const float2 next = float2(metal::max(old.x, reference_above(maximum.x)),
                               metal::max(old.y, reference_above(maximum.y)));
    reference[r] = next;
    rescale(r, float2(rescale_factor(old.x, next.x), rescale_factor(old.y, next.y)));
  }

  /// One softmax update: scores to weights, as the A operand of P V. Weights stay f32: rounded to
  /// T they would cost a row whose largest values hang on one small weight more than the bound.
  void softmax(thread float2 (&scores)[kRowTiles][kKeyTiles],
               thread float2 (&weights)[kRowTiles][kKeyTiles]) {
    SDPA_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      raise_reference(r, scores);
      const float2 from = float2(subtrahend(reference[r].x), subtrahend(reference[r].y));
      float2 tile_sum = float2(0.0f);
      SDPA_UNROLL
      for (int j = 0; j < kKeyTiles; ++j) {
        const float2 weight =
            float2(weight_of(scores[r][j].x, from.x), weight_of(scores[r][j].y, from.y));
        tile_sum = float2(tile_sum.x + weight.x, tile_sum.y + weight.y);
        weights[r][j] = transposed(weight, at);
      }
      compensated_add(sum[r], sum_compensation[r], tile_sum);
    }
  }

  /// O += P V. A tile is summed from zero, in f32 in blocks of kValueBlock key tiles, and then
  /// added, in f32 with compensation: so sums are an addition a tile long, which is what spans of
  /// prefill are cut by, and total's registers are free again after each fragment. 16-bit decode,
  /// with short spans, goes on with the sum.
  ///
  /// Roundings in f32, each at most u of the sum of p |v|: 8 kValueBlock in a block, one for two
  /// blocks, two for the compensated sum, whatever the number of keys; then two for the division by
  /// the sum of weights, which has at most 8 itself (a tile's, the compensated sum, 8 lanes). Equal
  /// terms lose a quarter of a block, 4 u.
  void multiply_values(thread const float2 (&weights)[kRowTiles][kKeyTiles],
                       thread const KeyTile& v) {
    SDPA_UNROLL
    for (int f = 0; f < kFragments; ++f) {
      SDPA_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        float2 before = float2(0.0f);
        float2 total = kTileTotals ? float2(0.0f) : o[r][f];
        SDPA_UNROLL
        for (int j = 0; j < kKeyTiles; ++j) {
          if (kCompensated && j == kValueBlock) {
            before = total;
            total = float2(0.0f);
          }
          total = multiply_accumulate(weights[r][j], v.pairs[j][f], total);
        }
        if (kCompensated) {
          if (kKeyTiles > kValueBlock) total = float2(before.x + total.x, before.y + total.y);
          compensated_add(o[r][f], o_compensation[r][f], total);
        } else if (kTileTotals) {
          o[r][f] = float2(o[r][f].x + total.x, o[r][f].y + total.y);
        } else {
          o[r][f] = total;
        }
      }
    }
  }

  /// Sets to zero what `load` repeated: a weight of 0 times inf is NaN. Rows are put right in the
  /// end whatever they met, but this is quicker.
  void clear_repeated(int first, KeyRange used, thread KeyTile& v) const {
    if (first + kKeys <= used.end && (!windowed || first >= used.begin)) return;
    SDPA_UNROLL
    for (int j = 0; j < kKeyTiles; ++j) {
      const int key = first + 8 * j + at.row;
      if (key < used.end && (!windowed || key >= used.begin)) continue;
      SDPA_UNROLL
      for (int f = 0; f < kFragments; ++f) v.pairs[j][f] = Pair(T(0.0f));
    }
  }

  /// Key tiles from `first` on that some row sees, every `step`-th key, for a team that is one
  /// simdgroup; k holds the first of them and `seen` what a boolean mask leaves of it. Loads are
  /// issued a tile before what needs them, except V's in prefill, whose registers are full.
  void attend(thread const TeamKeys<T>& keys, int first, int step, uint seen, thread KeyTile& k) {
    TilePlace place = keys.template place_of<kKeys>(first);
    while (first < keys.any.end) {
      float2 scores[kRowTiles][kKeyTiles];
      float2 weights[kRowTiles][kKeyTiles];
      KeyTile v;
      uint next_bits = 0;
      const int next = next_seen(keys, first + step, step, next_bits);
      const TilePlace next_place = keys.template place_of<kKeys>(next);
      if (!kPrefill) load(keys.v, keys, place, first, v);
      multiply_scores(k, scores);
      if (!kPrefill && next < keys.any.end) load(keys.k, keys, next_place, next, k);
      apply_rule(scores, keys, first, seen);
      softmax(scores, weights);
      if (kPrefill) load(keys.v, keys, place, first, v);
      clear_repeated(first, keys.any, v);
      multiply_values(weights, v);
      // Where all keys are seen the last of them may be loaded again.
      if (kPrefill && (!masked || next < keys.any.end)) {
        load(keys.k, keys, next_place, next, k);
      }
      first = next;
      place = next_place;
      seen = next_bits;
    }
  }

  /// Keys of a team of several simdgroups; k holds the tile at `first`, if a row sees it. All teams
  /// of the threadgroup take turns from there to `end`, since they meet at its barriers.
  /// `exchange` is the team's: two buffers, turn_stride apart. A buffer is written again two turns
  /// later, after the barrier of the turn between.
  void attend_sliced(thread const TeamKeys<T>& keys, int first, int end, uint seen,
                     threadgroup float2* exchange, int turn_stride, int slice, int lane,
                     thread KeyTile& k) {
    threadgroup float2* turn = exchange;
    threadgroup float2* other = exchange + turn_stride;
    KeyTile v;
    bool active = is_seen(keys, first, seen);
    if (active) load(keys.v, keys, keys.template place_of<kKeys>(first), first, v);
    for (; first < end; first += kKeys) {
      const int next = first + kKeys;
      uint next_bits = 0;
      float2 scores[kRowTiles][kKeyTiles];
      const bool next_active = is_seen(keys, next, next_bits);
      // Behind an active tile the next one is loaded without a question, which is quicker; past the
      // last key that is the last one again.
      const bool joins = (windowed || masked) && !active && next_active;
      TilePlace place;
      if (active || joins) place = keys.template place_of<kKeys>(next);
      if (active) {
        multiply_scores(k, scores);
        put_scores(scores, turn, slice, lane);
        if (!masked || next_active) load(keys.k, keys, place, next, k);
      }
      if (joins) load(keys.k, keys, place, next, k);
      metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
      if (active) {
        float2 weights[kRowTiles][kKeyTiles];
        take_scores(scores, turn, lane);
        apply_rule(scores, keys, first, seen);
        softmax(scores, weights);
        clear_repeated(first, keys.any, v);
        multiply_values(weights, v);
        if (!masked || next_active) load(keys.v, keys, place, next, v);
      }
      if (joins) load(keys.v, keys, place, next, v);
      active = next_active;
      seen = next_bits;
      threadgroup float2* const used = turn;
      turn = other;
      other = used;
    }
  }

  /// Leaves the state of all rows for the team that adds them up: [row tile][field][lane].
  void put_state(threadgroup float2* target, int lane) const {
    SDPA_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      threadgroup float2* fields = target + r * kStateFields * 32 + lane;
      SDPA_UNROLL
      for (int f = 0; f < kFragments; ++f) fields[f * 32] = o[r][f];
      fields[kFragments * 32] = reference[r];
      fields[(kFragments + 1) * 32] = sum[r];
    }
  }

  /// Adds, in order, what kOthers teams left by put_state, `stride` apart.
  template <int kOthers>
  void add_states(threadgroup const float2* source, int stride, int lane) {
    SDPA_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      threadgroup const float2* fields = source + r * kStateFields * 32 + lane;
      float2 others[kOthers];
      const float2 old = reference[r];
      float2 next = old;
      SDPA_UNROLL
      for (int t = 0; t < kOthers; ++t) {
        others[t] = fields[t * stride + kFragments * 32];
        next = float2(metal::max(next.x, others[t].x), metal::max(next.y, others[t].y));
      }
      reference[r] = next;
      rescale(r, float2(rescale_factor(old.x, next.x), rescale_factor(old.y, next.y)));
      float row_factor[kOthers];
      SDPA_UNROLL
      for (int t = 0; t < kOthers; ++t) {
        const float2 factor =
            float2(rescale_factor(others[t].x, next.x), rescale_factor(others[t].y, next.y));
        row_factor[t] = element_of_row(factor, at);
        compensated_add(sum[r], sum_compensation[r],
                        product(fields[t * stride + (kFragments + 1) * 32], factor));
      }
      SDPA_UNROLL
      for (int f = 0; f < kFragments; ++f) {
        SDPA_UNROLL
        for (int t = 0; t < kOthers; ++t) {
          const float2 part = fields[t * stride + f * 32];
          const float2 added = float2(part.x * row_factor[t], part.y * row_factor[t]);
          if (kCompensated) {
            compensated_add(o[r][f], o_compensation[r][f], added);
          } else {
            o[r][f] = float2(o[r][f].x + added.x, o[r][f].y + added.y);
          }
        }
      }
    }
  }

  /// Whether this lane has a numerator of row tile r that is not finite.
  bool has_special(int r) const {
    float2 zero = float2(0.0f);  // NaN once it has met one
    SDPA_UNROLL
    for (int f = 0; f < kFragments; ++f) {
      zero = float2(metal::fma(o[r][f].x, 0.0f, zero.x), metal::fma(o[r][f].y, 0.0f, zero.y));
    }
    return zero.x + zero.y != 0.0f;
  }

  /// State of row at.row of row tile r.
  TileRowState row_state(int r) const {
    TileRowState state;
    state.reference = element_of_row(reference[r], at);
    state.sum = element_of_row(column_sum(sum[r]), at);
    return state;
  }

  /// Writes this slice's part of row at.row of row tile r as output from element `start` on.
  void store_output(int r, RowFinish finish, device T* out, long start) const {
    SDPA_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      if (padded && element(c) >= head_dim) continue;
      SDPA_UNROLL
      for (int f = 0; f < kChunkFragments; ++f) {
        const float2 numerator = o[r][c * kChunkFragments + f];
        const long at_column = start + element(c) + 2 * f;
        store_element(out, at_column, finished(numerator.x, finish));
        store_element(out, at_column + 1, finished(numerator.y, finish));
      }
    }
  }

  /// Writes this slice's part of row at.row of row tile r as numerators of a state, whose rows
  /// start on 32 bytes.
  void store_numerators(int r, device float* row) const {
    SDPA_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      if (padded && element(c) >= head_dim) continue;
      device float4* target = reinterpret_cast<device float4*>(row + element(c));
      SDPA_UNROLL
      for (int f = 0; f < kChunkFragments; f += 2) {
        const float2 first = o[r][c * kChunkFragments + f];
        const float2 second = o[r][c * kChunkFragments + f + 1];
        target[f / 2] = float4(first.x, first.y, second.x, second.y);
      }
    }
  }
};

}  // namespace metal_sdpa

#endif  // METAL_SDPA_ATTENTION_TILE_H
