// The shaders' work division for the harness: sdpa_tiles.h and sdpa_spans.h behind C names.
#include "sdpa_spans.h"
#include "sdpa_tiles.h"

extern "C" {
int tile_head_dim(int head_dim) { return sdpa_tile_head_dim(head_dim); }
int tile_simdgroups(int prefill, int bytes, int dim) {
  return sdpa_tile_simdgroups(prefill, bytes, dim);
}
int tile_rows(int prefill, int bytes, int dim) { return sdpa_tile_rows(prefill, bytes, dim); }
int tile_keys(int prefill, int bytes, int dim) { return sdpa_tile_keys(prefill, bytes, dim); }
int tile_teams(int prefill, int bytes, int dim) { return sdpa_tile_teams(prefill, bytes, dim); }
int tile_row_teams(int prefill, int bytes, int dim, int n_rows) {
  return sdpa_tile_row_teams(prefill, bytes, dim, n_rows);
}
int tile_memory(int prefill, int bytes, int dim, int row_teams) {
  return sdpa_tile_threadgroup_bytes(prefill, bytes, dim, row_teams);
}
int span_len(int prefill, int bytes, int head_dim) {
  return int(sdpa_span_len(prefill, bytes, head_dim));
}
int merge_simdgroups(int n_spans) { return sdpa_merge_simdgroups(n_spans); }
int merge_columns() { return SDPA_MERGE_COLUMNS; }
int merge_bytes() { return SDPA_MERGE_BYTES; }
long long span_keys(long long span_len, long long kv_len, int grouped) {
  return sdpa_span_keys(span_len, kv_len, grouped);
}
}
