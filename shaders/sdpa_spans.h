// The span rule: how the keys of a sequence are cut into spans. Shared by host and shader.
#ifndef METAL_SDPA_SDPA_SPANS_H
#define METAL_SDPA_SDPA_SPANS_H

#include "shader_types.h"

/// Spans that a sequence has at most, unless its span_len holds all of it: more would make merging
/// slow and its scratch large.
#define SDPA_MAX_SPANS 128

/// Keys of one span of a sequence of kv_len keys: `span_len` (SdpaArgs, at least 1), doubled until
/// SDPA_MAX_SPANS spans hold all keys. It reads nothing but these two, so that a sequence has the
/// same spans in every batch.
inline sdpa_i64 sdpa_span_keys(sdpa_i64 span_len, sdpa_i64 kv_len) {
  while (kv_len > span_len * SDPA_MAX_SPANS) span_len *= 2;
  return span_len;
}

/// Spans that hold the first `n_keys` of a sequence whose spans have span_keys keys. GPUs have no
/// 64-bit division: theirs is a long subroutine.
inline sdpa_i64 sdpa_span_count(sdpa_i64 n_keys, sdpa_i64 span_keys) {
  const sdpa_i64 last = n_keys + span_keys - 1;
  if (last <= 0xffffffffl) return sdpa_u32(last) / sdpa_u32(span_keys);
  return last / span_keys;
}

/// span_len of sdpa_decode: about 32 KB of K and V a span, from 32 to 256 keys.
inline sdpa_u32 sdpa_decode_span(int element_bytes, int head_dim) {
  const int row_bytes = 2 * element_bytes * head_dim;
  return row_bytes <= 128 ? 256 : row_bytes <= 256 ? 128 : row_bytes <= 1024 ? 64 : 32;
}

/// span_len of sdpa_prefill where L <= 64.
inline sdpa_u32 sdpa_prefill_span(int element_bytes, int head_dim) {
  return element_bytes * head_dim <= 256 ? 128 : 64;
}

#endif  // METAL_SDPA_SDPA_SPANS_H
