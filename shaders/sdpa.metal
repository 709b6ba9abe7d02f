// The straightforward kernel: one thread per query row.
//   s_j = scale * (q . k_j)          for every visible key j, or what score_rule.h makes of it
//   out = sum_j exp(s_j - m) v_j / sum_j exp(s_j - m)
// Keys are taken in tiles with one softmax update a tile. Every sum over keys is short: a tile from
// zero, then one compensated addition, so the error does not grow with the number of keys. A long
// cache is cut into spans, of which a thread takes one and leaves its state for sdpa_merge.
//
// Roundings, each at most u = 2^-24: of a score 8 in a chunk, 8 chunks in a block and D / 64
// blocks, of |q| |k|; of a numerator 16 in a tile and 2 for the compensated sum, as many for the
// sum of weights, and 2 for the division, of the sum of p |v|. Equal terms lose a quarter of each
// chain.
#include <metal_stdlib>

#include "key_rows.h"
#include "row_finish.h"
#include "score_rule.h"
#include "sdpa_args.h"
#include "sdpa_params.h"
#include "sdpa_problem.h"
#include "softmax_state.h"

constant bool general_constant [[function_constant(SDPA_CONSTANT_GENERAL)]];
constant bool general = is_function_constant_defined(general_constant) ? general_constant : false;
constant bool packed = !general;

namespace metal_sdpa {

constant constexpr int kMaxValueDim = 576;
/// Keys of one softmax update.
constant constexpr int kTileKeys = 16;
/// Elements of a row that are read together; a block's products are summed from zero.
constant constexpr int kChunk = 8;
/// Elements of q.k that are summed before they join the score: two short chains, not a long one.
constant constexpr int kDotBlock = 64;

/// A packed problem in the terms of the general one.
inline SdpaArgs args_from_params(constant SdpaParamsBlock& params) {
  SdpaArgs args;
  const long width = params.head_dim;
  args.q_stride.row = width;
  args.q_stride.head = width * params.seq_len;
  args.q_stride.batch = args.q_stride.head * params.n_heads;
  args.k_stride.row = width;
  args.k_stride.head = width * params.kv_capacity;
  args.k_stride.batch = args.k_stride.head * params.n_kv_heads;
  args.v_stride = args.k_stride;
  args.out_stride = args.q_stride;
  args.q_offset = 0;
  args.k_offset = 0;
  args.v_offset = 0;
  args.out_offset = 0;
  args.sequence.q_start = long(params.kv_seq_len) - long(params.seq_len);
  args.sequence.kv_len = params.kv_seq_len;
  args.sequence.kv_start = 0;
  args.sequence.query_len = params.seq_len;
  args.sequence.q_row = 0;
  args.sequence.key_begin = 0;
  args.n_heads = params.n_heads;
  args.n_kv_heads = params.n_kv_heads;
  args.seq_len = params.seq_len;
  args.head_dim = params.head_dim;
  args.value_dim = params.head_dim;
  args.scale = params.scale;
  args.window.left = -1;
  args.window.right = params.do_causal != 0 ? 0 : -1;
  args.window.key_offset = 0;
  args.window.key_stride = 1;
  args.row_begin = 0;
  args.row_end = params.seq_len;
  args.span_len = params.kv_seq_len;
  args.n_spans = 1;
  args.span_begin = 0;
  args.batch_begin = 0;
  args.head_begin = 0;
  args.head_end = params.n_heads;
  args.lse_head = params.seq_len;
  args.lse_batch = args.lse_head * params.n_heads;
  args.seen_begin = 0;
  args.packed_rows = 0;
  return args;
}

/// Keys first .. first + count - 1 (count 1 to kTileKeys) of one sequence under one KV head. Rows
/// past the last key repeat it: they are read, but get no weight.
template <typename T>
struct KeyTile {
  KeyRows<T> k;
  KeyRows<T> v;
  PageList pages;
  long first;
  int count;
  PagedRow places[kTileKeys];  ///< where there are pages: the table is read once a tile

  void set(long first_key, long end_key) {
    first = first_key;
    count = int(metal::min(long(kTileKeys), end_key - first_key));
    if (!paged) return;
    for (int j = 0; j < kTileKeys; ++j) {
      places[j] = pages.place(int(first_key) + metal::min(j, count - 1));
    }
  }

  device const T* k_at(int j) const { return row_at(k, j); }
  device const T* v_at(int j) const { return row_at(v, j); }

  device const T* row_at(thread const KeyRows<T>& rows, int j) const {
    if (paged) return rows.start + rows.in_page(places[j]);
    return rows.start + (first + metal::min(j, count - 1)) * rows.row;
  }
};

/// Adds q[begin .. end) . k_j to sums[j] for every key of the tile.
template <typename T>
void add_products(device const T* q, thread const KeyTile<T>& tile, int begin, int end,
                  thread float* sums) {
  int d = begin;
  for (; d + kChunk <= end; d += kChunk) {
    float q_chunk[kChunk];
    for (int e = 0; e < kChunk; ++e) q_chunk[e] = float(q[d + e]);
    for (int j = 0; j < kTileKeys; ++j) {
      device const T* k = tile.k_at(j) + d;
      float sum = 0.0f;
      for (int e = 0; e < kChunk; ++e) sum += q_chunk[e] * float(k[e]);
      sums[j] += sum;
    }
  }
  for (; d < end; ++d) {
    const float q_element = float(q[d]);
    for (int j = 0; j < kTileKeys; ++j) sums[j] += q_element * float(tile.k_at(j)[d]);
  }
}

/// A row: its query, and what its scores become.
template <typename T>
struct Row {
  device const T* q;
  ScoreRule rule;
  RowRule own;  ///< keys count from slot 0
  int head_dim;
  int value_dim;

  /// Whether a boolean mask leaves a key of the tile.
  bool sees(thread const KeyTile<T>& tile) const {
    if (!masked) return true;
    for (int j = 0; j < tile.count; ++j) {
      if (rule.lets_see(own, tile.first + j)) return true;
    }
    return false;
  }
};

/// Scores of the tile's keys; -inf past the last, and where a mask hides the key.
template <typename T>
void tile_scores(thread const Row<T>& row, thread const KeyTile<T>& tile, thread float* scores) {
  for (int j = 0; j < kTileKeys; ++j) scores[j] = 0.0f;
  for (int begin = 0; begin < row.head_dim; begin += kDotBlock) {
    float block[kTileKeys];
    for (int j = 0; j < kTileKeys; ++j) block[j] = 0.0f;
    add_products(row.q, tile, begin, metal::min(begin + kDotBlock, row.head_dim), block);
    for (int j = 0; j < kTileKeys; ++j) scores[j] += block[j];
  }
  for (int j = 0; j < kTileKeys; ++j) {
    scores[j] = j < tile.count ? row.rule.score(scores[j], row.own, tile.first + j) : -INFINITY;
  }
}

/// Softmax state of one row.
struct RowState {
  float reference;
  float sum;
  float sum_compensation;
  float numerators[kMaxValueDim];
  float compensations[kMaxValueDim];

  void reset(int value_dim) {
    reference = -INFINITY;
    sum = 0.0f;
    sum_compensation = 0.0f;
    reset_numerators(value_dim);
  }

  void reset_numerators(int value_dim) {
    for (int d = 0; d < value_dim; ++d) {
      numerators[d] = 0.0f;
      compensations[d] = 0.0f;
    }
  }

  /// Brings the state to a reference at or above its own and every score; returns the factor that
  /// the numerators still need. A NaN score does not move the reference.
  float raise_reference(thread const float* scores) {
    float maximum = scores[0];
    for (int j = 1; j < kTileKeys; ++j) maximum = metal::max(maximum, scores[j]);
    if (!(maximum > reference)) return 1.0f;
    const float next = metal::max(reference, reference_above(maximum));
    const float factor = rescale_factor(reference, next);
    reference = next;
    sum *= factor;
    sum_compensation *= factor;
    return factor;
  }

  bool has_special(int value_dim) const {
    for (int d = 0; d < value_dim; ++d) {
      if (!metal::isfinite(numerators[d])) return true;
    }
    return false;
  }

  /// Element d: the numerator so far times factor, plus the tile's.
  void add_value(int d, float factor, float value) {
    float numerator = numerators[d] * factor;
    float compensation = compensations[d] * factor;
    compensated_add(numerator, compensation, value);
    numerators[d] = numerator;
    compensations[d] = compensation;
  }
};

/// Adds the tile's weighted values to the numerators.
template <typename T>
void add_values(thread const KeyTile<T>& tile, thread const float* weights, float factor,
                int value_dim, thread RowState& state) {
  int d = 0;
  for (; d + kChunk <= value_dim; d += kChunk) {
    float values[kChunk];
    for (int e = 0; e < kChunk; ++e) values[e] = 0.0f;
    for (int j = 0; j < kTileKeys; ++j) {
      if (j >= tile.count) break;
      device const T* v = tile.v_at(j) + d;
      for (int e = 0; e < kChunk; ++e) values[e] += weights[j] * float(v[e]);
    }
    for (int e = 0; e < kChunk; ++e) state.add_value(d + e, factor, values[e]);
  }
  for (; d < value_dim; ++d) {
    float value = 0.0f;
    for (int j = 0; j < kTileKeys; ++j) {
      if (j >= tile.count) break;
      value += weights[j] * float(tile.v_at(j)[d]);
    }
    state.add_value(d, factor, value);
  }
}

/// One softmax update: the state takes in the tile's keys.
template <typename T>
void attend_tile(thread const Row<T>& row, thread const KeyTile<T>& tile, thread RowState& state) {
  float weights[kTileKeys];
  tile_scores(row, tile, weights);
  const float factor = state.raise_reference(weights);
  const float from = subtrahend(state.reference);
  float weight_sum = 0.0f;
  for (int j = 0; j < kTileKeys; ++j) {
    weights[j] = weight_of(weights[j], from);
    weight_sum += weights[j];
  }
  compensated_add(state.sum, state.sum_compensation, weight_sum);
  add_values(tile, weights, factor, row.value_dim, state);
}

/// Adds the tile's keys to the numerators one by one, at the reference that the state has: values
/// may be infinite or NaN, and a key whose score is -inf counts as not seen.
template <typename T>
void add_specials(thread const Row<T>& row, thread const KeyTile<T>& tile, thread RowState& state) {
  float scores[kTileKeys];
  tile_scores(row, tile, scores);
  const float from = subtrahend(state.reference);
  for (int j = 0; j < tile.count; ++j) {
    if (scores[j] == -INFINITY) continue;
    const float weight = weight_of(scores[j], from);
    device const T* v = tile.v_at(j);
    for (int d = 0; d < row.value_dim; ++d) {
      compensated_add_special(state.numerators[d], state.compensations[d],
                              weighted(float(v[d]), weight));
    }
  }
}

}  // namespace metal_sdpa

/// Threadgroups (B, Hq, ceil(rows / SDPA_TILE_Q) * spans) of SDPA_TILE_Q threads, one a row.
template <typename T>
[[kernel]] void sdpa_straight(
    device const T* q [[buffer(SDPA_BUFFER_Q)]], device const T* k [[buffer(SDPA_BUFFER_K)]],
    device const T* v [[buffer(SDPA_BUFFER_V)]],
    device T* out [[buffer(SDPA_BUFFER_OUT), function_constant(write_output)]],
    constant SdpaParamsBlock& params [[buffer(SDPA_BUFFER_PARAMS), function_constant(packed)]],
    constant SdpaArgs& general_args [[buffer(SDPA_BUFFER_ARGS), function_constant(general)]],
    device float* lse [[buffer(SDPA_BUFFER_LSE), function_constant(write_output_lse)]],
    device const SdpaWorkItem* work [[buffer(SDPA_BUFFER_WORK), function_constant(work_list)]],
    device float* partial_o [[buffer(SDPA_BUFFER_PARTIAL_O), function_constant(write_partial)]],
    device float2* partial_ms [[buffer(SDPA_BUFFER_PARTIAL_MS), function_constant(write_partial)]],
    device const uchar* mask [[buffer(SDPA_BUFFER_MASK), function_constant(has_mask)]],
    device const uchar* sinks [[buffer(SDPA_BUFFER_SINKS), function_constant(has_sinks)]],
    device const float* slopes [[buffer(SDPA_BUFFER_ALIBI), function_constant(alibi)]],
    device const uchar* table [[buffer(SDPA_BUFFER_PAGES), function_constant(paged)]],
    uint3 grid_position [[threadgroup_position_in_grid]],
    uint3 thread_in_group [[thread_position_in_threadgroup]]) {
  using namespace metal_sdpa;
  SdpaArgs args;
  if (general) {
    args = general_args;
  } else {
    args = args_from_params(params);
  }
  uint3 group = grid_position;
  SdpaWorkItem item = grid_item(args, group);
  if (work_list) item = list_item(work, group);
  const uint row_blocks = (args.row_end - args.row_begin + SDPA_TILE_Q - 1) / SDPA_TILE_Q;
  const long b = long(item.batch_index);
  const long h = long(args.head_begin) + long(group.y);
  const long i =
      long(args.row_begin) + long(group.z % row_blocks) * SDPA_TILE_Q + long(thread_in_group.x);
  if (i >= long(row_end_of(args, item.sequence))) return;

  const SdpaBand band = band_of(args, item.sequence, i);
  long first_key = windowed ? band.begin : 0l;
  long end_key = band.end;
  const long span = long(item.span) + long(group.z / row_blocks);
  if (write_partial) {
    const long span_begin = span * long(item.span_len);
    first_key = metal::max(first_key, span_begin);
    end_key = metal::min(end_key, span_begin + long(item.span_len));
    // What the row does not see is no state: the merge does not read it.
    if (first_key >= end_key) return;
  }

  const long kv_h = h / long(args.n_heads / args.n_kv_heads);
  KeyTile<T> tile;
  tile.k = key_rows(k, args.k_offset, args.k_stride, b, kv_h, item.sequence, 0l);
  tile.v = key_rows(v, args.v_offset, args.v_stride, b, kv_h, item.sequence, 0l);
  if (paged) tile.pages.init(table, args, item.sequence, 0l);
  Row<T> row;
  row.q =
      q + query_start(args.q_offset, args.q_stride, b, h, item.sequence) + i * args.q_stride.row;
  row.head_dim = int(args.head_dim);
  row.value_dim = int(args.value_dim);
  row.rule.init(args);
  if (has_mask) row.rule.mask = mask;
  if (alibi) row.rule.slopes = slopes;
  row.own = row.rule.row(args, item.sequence, b, h, i, 0l);

  const int value_dim = row.value_dim;
  RowState state;
  state.reset(value_dim);
  for (long first = first_key; first < end_key; first += kTileKeys) {
    tile.set(first, end_key);
    if (row.sees(tile)) attend_tile(row, tile, state);
  }
  // Not where scores are NaN: then everything is.
  if (state.has_special(value_dim) && state.sum == state.sum) {
    state.reset_numerators(value_dim);
    for (long first = first_key; first < end_key; first += kTileKeys) {
      tile.set(first, end_key);
      if (row.sees(tile)) add_specials(row, tile, state);
    }
  }

  if (write_partial) {
    const long index = state_of(args, item, h, i, span);
    device float* numerators = partial_o + index * value_dim;
    for (int d = 0; d < value_dim; ++d) numerators[d] = state.numerators[d];
    partial_ms[index] = float2(state.reference, state.sum);
    return;
  }
  float sink = -INFINITY;
  if (has_sinks) sink = sink_of(sinks, args, h);
  const RowFinish finish = finish_row(state.reference, state.sum, sink);
  const long start =
      query_start(args.out_offset, args.out_stride, b, h, item.sequence) + i * args.out_stride.row;
  for (int d = 0; d < value_dim; ++d) {
    store_element(out, start + d, finished(state.numerators[d], finish));
  }
  if (write_output_lse) lse[lse_row(args, item.sequence, b, h, i)] = finish.lse;
}

#define SDPA_INSTANTIATE(name, type) \
  template [[host_name(name)]] [[kernel]] decltype(sdpa_straight<type>) sdpa_straight<type>;
SDPA_INSTANTIATE("sdpa", float)
SDPA_INSTANTIATE("sdpa_f16", half)
SDPA_INSTANTIATE("sdpa_bf16", bfloat)
#undef SDPA_INSTANTIATE
