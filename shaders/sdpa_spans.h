// The span rule: how the keys of a sequence are cut into spans. Shared by host and shader.
#ifndef METAL_SDPA_SDPA_SPANS_H
#define METAL_SDPA_SDPA_SPANS_H

#include "shader_types.h"

/// Spans that a sequence has at most, unless its span_len holds all of it: more would make merging
/// slow and its scratch large.
#define SDPA_MAX_SPANS 128

/// Keys of one span of a sequence of kv_len keys. It reads nothing but these two, so that a
/// sequence has the same spans in every batch. A short cache is cut into spans of `span_len` keys
/// (SdpaArgs, at least 1) to keep the GPU busy; a longer one into spans of 256 (512 where span_len
/// is 256), since each span costs its states; and one past that into SDPA_MAX_SPANS.
inline sdpa_i64 sdpa_span_keys(sdpa_i64 span_len, sdpa_i64 kv_len) {
  const sdpa_i64 enough_spans = span_len < 128 ? 64 : 32;
  const sdpa_i64 longest = span_len < 128 ? 4 * span_len : 2 * span_len;
  sdpa_i64 keys = span_len;
  while (kv_len > keys * enough_spans && keys < longest) keys *= 2;
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

/// span_len of sdpa_decode, as measured. A threadgroup of slices (sdpa_tiles.h) takes one span
/// where others take 4.
inline sdpa_u32 sdpa_decode_span(int element_bytes, int head_dim) {
  const int slice_dim = element_bytes == 4 ? 96 : 128;
  return head_dim > slice_dim ? 256 : head_dim > 64 ? 64 : 128;
}

/// span_len of sdpa_prefill where L <= 64.
inline sdpa_u32 sdpa_prefill_span(int element_bytes, int head_dim) {
  return element_bytes * head_dim <= 256 ? 128 : 64;
}

#endif  // METAL_SDPA_SDPA_SPANS_H
