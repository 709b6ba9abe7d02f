// The span rule: how the keys of a sequence are cut into spans. The host cuts; a shader is told the
// keys of a span and counts.
#ifndef METAL_SDPA_SDPA_SPANS_H
#define METAL_SDPA_SDPA_SPANS_H

#include "shader_types.h"

/// Spans that a sequence has, as long as its spans are not at their longest: more would make
/// merging slow and its scratch large.
#define SDPA_USUAL_SPANS 128

/// Bytes of span states that one dispatch leaves at most.
#define SDPA_MAX_STATE_BYTES (64 << 20)

/// Queries with which spans are short enough to keep a GPU busy. Beyond, rows are enough for that,
/// and spans are as long as the arithmetic lets them be.
#define SDPA_SHORT_SPAN_ROWS 1024

/// What decides on the spans of a sequence beside its own length.
struct SdpaSpanRule {
  sdpa_i64 span_len;   ///< keys of a span of a short cache
  sdpa_i64 limit;      ///< keys of a span at most, while there are fewer than max_spans
  sdpa_i64 max_spans;  ///< spans whose states of the rows that cannot be cut are 64 MB
  bool grouped;        ///< Hq > Hkv
};

/// Keys of one span of a sequence of kv_len keys. It reads nothing of the batch, so that a sequence
/// has the same spans in every one. From 8k keys on spans grow as the root of the cache, since
/// their length is what a threadgroup goes through and their number what is to be merged. Without
/// grouped queries (Hq = Hkv) there are KV heads enough to keep a GPU busy: 8 spans, until they are
/// 8 times as long. The limit, where sums would get too long, goes before all that.
inline sdpa_i64 sdpa_span_keys(SdpaSpanRule rule, sdpa_i64 kv_len) {
  sdpa_i64 keys = rule.span_len;
  while (!rule.grouped && kv_len > 8 * keys && keys < 8 * rule.span_len) keys *= 2;
  for (sdpa_i64 from = rule.grouped ? 8192 : 65536; kv_len >= from && kv_len > keys; from *= 4) {
    keys *= 2;
  }
  while (kv_len > keys * SDPA_USUAL_SPANS) keys *= 2;
  if (keys > rule.limit) keys = rule.limit;
  while ((kv_len - 1) / rule.max_spans >= keys) keys *= 2;
  return keys;
}

/// Spans that hold the first `n_keys` of a sequence whose spans have span_keys keys. GPUs have no
/// 64-bit division: theirs is a long subroutine.
inline sdpa_i64 sdpa_span_count(sdpa_i64 n_keys, sdpa_i64 span_keys) {
  const sdpa_i64 last = n_keys + span_keys - 1;
  if (last <= 0xffffffffl) return sdpa_u32(last) / sdpa_u32(span_keys);
  return last / span_keys;
}

/// The span that key `key` (0 or more) stands in.
inline sdpa_i64 sdpa_span_of(sdpa_i64 key, sdpa_i64 span_keys) {
  if (key <= 0xffffffffl) return sdpa_u32(key) / sdpa_u32(span_keys);
  return key / span_keys;
}

/// Keys of a span at most, so that the sums of a 16-bit numerator are short enough: each addition
/// may cost half a unit in the last place of f32, and a quarter of a unit of the output's type is
/// left for all of them, which is 2048 additions in f16 and 16384 in bf16. sdpa_prefill makes one
/// for each tile of 16 keys or more, and 16 within it: 1040. sdpa_decode makes one a key. f32 adds
/// with compensation and would need no limit.
inline sdpa_i64 sdpa_longest_span(bool prefill, bool f16) { return !prefill && f16 ? 2048 : 16384; }

/// Keys of a span of a short cache for seq_len queries that are not sdpa_decode's, as measured: 128
/// for 64, and twice as many for twice as many, since their rows keep the GPU busy too. It doubles
/// half way between the powers of two: then neither they nor the next number leave too many states.
inline sdpa_i64 sdpa_chunk_span_len(sdpa_i64 seq_len) {
  sdpa_i64 keys = 128;
  for (sdpa_i64 rows = 96; rows < seq_len && keys < 2048; rows *= 2) keys *= 2;
  return keys;
}

/// The same for sdpa_decode. At D 128 in f32, the wide kernel that is used most, a threadgroup is
/// two simdgroups instead of four, so more are to be busy.
inline sdpa_i64 sdpa_decode_span_len(int element_bytes, int head_dim) {
  return element_bytes == 4 && head_dim > 96 ? 128 : 256;
}

/// sdpa_merge adds up the spans of a row in runs, one a simdgroup: at most SDPA_MERGE_RUNS, of at
/// least SDPA_MERGE_BATCH spans, which a simdgroup loads at a time.
#define SDPA_MERGE_RUNS 8
#define SDPA_MERGE_BATCH 4

/// Columns of a row that one threadgroup of sdpa_merge adds up, and its threadgroup memory.
#define SDPA_MERGE_COLUMNS 128
#define SDPA_MERGE_BYTES (4 * SDPA_MERGE_RUNS * (SDPA_MERGE_COLUMNS + 1))

/// Spans of one run of a row that has n_spans.
inline int sdpa_merge_run_spans(int n_spans) {
  const int spans = (n_spans + SDPA_MERGE_RUNS - 1) / SDPA_MERGE_RUNS;
  return spans < SDPA_MERGE_BATCH ? SDPA_MERGE_BATCH : spans;
}

/// Simdgroups that are enough for every row of up to n_spans spans.
inline int sdpa_merge_simdgroups(int n_spans) {
  const int runs = (n_spans + SDPA_MERGE_BATCH - 1) / SDPA_MERGE_BATCH;
  return runs < SDPA_MERGE_RUNS ? runs : SDPA_MERGE_RUNS;
}

#endif  // METAL_SDPA_SDPA_SPANS_H
