// The span rule: how the keys of a sequence are cut into spans. Shared by host and shader.
#ifndef METAL_SDPA_SDPA_SPANS_H
#define METAL_SDPA_SDPA_SPANS_H

#include "shader_types.h"

/// Spans that a sequence has at most, unless its span_len holds all of it: more would make merging
/// slow and its scratch large.
#define SDPA_MAX_SPANS 128

/// Keys of one span of a sequence of kv_len keys. It reads nothing of the batch, so that a sequence
/// has the same spans in every one. span_len (SdpaArgs, at least 1) is for up to 8k keys; from
/// there on spans grow as the root of the cache, since their length is what a threadgroup goes
/// through and their number what is to be merged. Without grouped queries (Hq = Hkv) there are KV
/// heads enough to keep a GPU busy: 8 spans, until they are 8 times as long.
inline sdpa_i64 sdpa_span_keys(sdpa_i64 span_len, sdpa_i64 kv_len, bool grouped) {
  sdpa_i64 keys = span_len;
  while (!grouped && kv_len > 8 * keys && keys < 8 * span_len) keys *= 2;
  for (sdpa_i64 limit = grouped ? 8192 : 65536; kv_len >= limit && kv_len > keys; limit *= 4) {
    keys *= 2;
  }
  while (kv_len > keys * SDPA_MAX_SPANS) keys *= 2;
  return keys;
}

/// Spans that hold the first `n_keys` of a sequence whose spans have span_keys keys. GPUs have no
/// 64-bit division: theirs is a long subroutine.
inline sdpa_i64 sdpa_span_count(sdpa_i64 n_keys, sdpa_i64 span_keys) {
  const sdpa_i64 last = n_keys + span_keys - 1;
  if (last <= 0xffffffffl) return sdpa_u32(last) / sdpa_u32(span_keys);
  return last / span_keys;
}

/// span_len of sdpa_decode, and of sdpa_prefill where L <= 64, as measured. At D 128 in f32, the
/// wide kernel that is used most, a threadgroup is two simdgroups instead of four, so more are to
/// be busy.
inline sdpa_u32 sdpa_span_len(bool prefill, int element_bytes, int head_dim) {
  return prefill || (element_bytes == 4 && head_dim > 96) ? 128 : 256;
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
