// The shaders' work division for the harness: sdpa_tiles.h and sdpa_spans.h behind C names.
#include "sdpa_spans.h"
#include "sdpa_tiles.h"

extern "C" {
int tile_head_dim(int head_dim) { return sdpa_tile_head_dim(head_dim); }
int tile_simdgroups(int prefill, int bytes, int dim) {
  return sdpa_tile_simdgroups(prefill, bytes, dim);
}
int tile_teams(int prefill, int bytes, int dim) { return sdpa_tile_teams(prefill, bytes, dim); }
int tile_rows(int prefill, int bytes, int dim) { return sdpa_tile_rows(prefill, bytes, dim); }
int tile_keys(int prefill, int bytes, int dim) { return sdpa_tile_keys(prefill, bytes, dim); }
int tile_memory(int prefill, int bytes, int dim) {
  return sdpa_tile_threadgroup_bytes(prefill, bytes, dim);
}
int decode_span(int bytes, int head_dim) { return int(sdpa_decode_span(bytes, head_dim)); }
int prefill_span(int bytes, int head_dim) { return int(sdpa_prefill_span(bytes, head_dim)); }
long long span_keys(long long span_len, long long kv_len) {
  return sdpa_span_keys(span_len, kv_len);
}
}
