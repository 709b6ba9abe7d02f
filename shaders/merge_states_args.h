// The argument block of the kernels merge_states_*, shared by host and shader.
#ifndef METAL_SDPA_MERGE_STATES_ARGS_H
#define METAL_SDPA_MERGE_STATES_ARGS_H

#include "sdpa_args.h"

#define MERGE_BUFFER_OUTS 0  // [n, B, H, rows, width]
#define MERGE_BUFFER_LSES 1  // f32 [n, B, H, rows]
#define MERGE_BUFFER_OUT 2   // [B, H, rows, width]
#define MERGE_BUFFER_LSE 3   // f32 [B, H, rows]
#define MERGE_BUFFER_ARGS 4  // MergeArgs

/// Columns that a threadgroup takes at a time, one a thread (Metal).
#define MERGE_COLUMNS 128

/// Element strides of [n, B, H, rows].
struct MergeStateStrides {
  sdpa_i64 state;
  sdpa_i64 batch;
  sdpa_i64 head;
  sdpa_i64 row;
};

struct MergeArgs {
  MergeStateStrides outs_stride;
  MergeStateStrides lses_stride;
  SdpaStrides out_stride;
  SdpaStrides lse_stride;
  sdpa_i64 outs_offset;
  sdpa_i64 lses_offset;
  sdpa_i64 out_offset;
  sdpa_i64 lse_offset;
  sdpa_u32 n_states;
  sdpa_u32 batch;
  sdpa_u32 heads;
  sdpa_u32 rows;
  sdpa_u32 width;
  sdpa_u32 unused;
};

SDPA_SHARED_ASSERT(sizeof(MergeArgs) == 168, "host and shader agree on 168 bytes");
SDPA_SHARED_ASSERT(offsetof(MergeArgs, outs_offset) == 112, "offsets follow the strides");

#endif  // METAL_SDPA_MERGE_STATES_ARGS_H
