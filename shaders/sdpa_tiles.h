// Work division of sdpa_decode and sdpa_prefill, as pure functions shared by host and shader: what
// the host needs to size a dispatch is what the kernels are built from.
//
// A kernel is instantiated for a few head dims; a problem takes the smallest at or above its own.
// A threadgroup is a number of teams. A team holds sdpa_tile_rows packed rows (row i of query head
// h is packed row i * (Hq / Hkv) + h % (Hq / Hkv) of its KV head) and goes through keys in tiles.
// It is one simdgroup, or several that share out a large head_dim (slices).
#ifndef METAL_SDPA_SDPA_TILES_H
#define METAL_SDPA_SDPA_TILES_H

#include "shader_types.h"

/// Largest head_dim of sdpa_decode and sdpa_prefill; it must be a multiple of 8, and Dv equal it.
#define SDPA_TILE_MAX_HEAD_DIM 576

/// Head dim of the kernel that takes `head_dim`: the d of its name.
constexpr int sdpa_tile_head_dim(int head_dim) {
  return head_dim <= 32    ? 32
         : head_dim <= 64  ? 64
         : head_dim <= 96  ? 96
         : head_dim <= 128 ? 128
         : head_dim <= 192 ? 192
         : head_dim <= 256 ? 256
         : head_dim <= 384 ? 384
         : head_dim <= 512 ? 512
                           : 576;
}

/// Simdgroups that share out the head_dim of one team, so that a lane keeps its part of Q, K, V, O
/// and, in f32, of O's rounding errors in about 110 registers. `dim` is a kernel's head dim here
/// and below.
constexpr int sdpa_tile_slices(bool prefill, int element_bytes, int dim) {
  return element_bytes == 4 ? (dim <= 96 ? 1 : dim / 64)
         : dim <= 128       ? 1
         : !prefill         ? dim / 64
         : dim <= 256       ? 1
         : dim <= 512       ? 4
                            : 6;
}

/// Teams of a threadgroup. Decode with slices has one, since they would wait for each other at
/// every tile's barrier.
constexpr int sdpa_tile_teams(bool prefill, int element_bytes, int dim) {
  return sdpa_tile_slices(prefill, element_bytes, dim) == 1              ? 4
         : sdpa_tile_slices(prefill, element_bytes, dim) == 2 && prefill ? 2
                                                                         : 1;
}

/// Simdgroups of a threadgroup: its threads are 32 times as many.
constexpr int sdpa_tile_simdgroups(bool prefill, int element_bytes, int dim) {
  return sdpa_tile_teams(prefill, element_bytes, dim) *
         sdpa_tile_slices(prefill, element_bytes, dim);
}

/// Packed rows of one team.
constexpr int sdpa_tile_rows(bool prefill, int element_bytes, int dim) {
  return !prefill || element_bytes == 4                           ? 8
         : dim / sdpa_tile_slices(true, element_bytes, dim) > 128 ? 8
                                                                  : 16;
}

/// Teams with rows of their own (SdpaArgs::group_split), a divisor of all teams; the others share
/// their rows and take every so many-th tile of their keys. n_rows: packed rows of a KV head in the
/// whole problem, L * Hq / Hkv, and not those of a dispatch, since this decides in which order a
/// row's keys are added. Teams with slices all have rows of their own.
constexpr int sdpa_tile_row_teams(bool prefill, int element_bytes, int dim, sdpa_i64 n_rows) {
  return sdpa_tile_slices(prefill, element_bytes, dim) > 1 ||
                 n_rows > 2 * sdpa_tile_rows(prefill, element_bytes, dim)
             ? sdpa_tile_teams(prefill, element_bytes, dim)
         : n_rows > sdpa_tile_rows(prefill, element_bytes, dim) ? 2
                                                                : 1;
}

/// Keys of one softmax update: a simdgroup's tile of K is at most 4 KB, 32 registers a lane; half
/// of it for the slices of f32, which keep rounding errors too.
constexpr int sdpa_tile_keys(bool prefill, int element_bytes, int dim) {
  return element_bytes == 4 && dim == 96                                              ? 8
         : dim / sdpa_tile_slices(prefill, element_bytes, dim) * element_bytes <= 128 ? 32
                                                                                      : 16;
}

/// Bytes that a team without slices leaves in threadgroup memory for the one that adds up the rows
/// they share: of each row tile numerators, reference and sum, as they stand in the lanes.
constexpr int sdpa_tile_state_bytes(bool prefill, int element_bytes, int dim) {
  return sdpa_tile_rows(prefill, element_bytes, dim) / 8 * (dim / 8 + 2) * 256;
}

/// Bytes of threadgroup memory 0 that a kernel uses. Slices leave their parts of the scores there,
/// in two buffers by turns; teams that share rows all their states but one.
constexpr int sdpa_tile_threadgroup_bytes(bool prefill, int element_bytes, int dim, int row_teams) {
  return sdpa_tile_slices(prefill, element_bytes, dim) == 1
             ? (sdpa_tile_teams(prefill, element_bytes, dim) - row_teams) *
                   sdpa_tile_state_bytes(prefill, element_bytes, dim)
             : 2 * sdpa_tile_simdgroups(prefill, element_bytes, dim) *
                   sdpa_tile_rows(prefill, element_bytes, dim) *
                   sdpa_tile_keys(prefill, element_bytes, dim) * 4;
}

#endif  // METAL_SDPA_SDPA_TILES_H
