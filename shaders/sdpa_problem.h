// What every attention kernel reads from its arguments: function constants, and where one
// sequence, head and row of a problem stand.
#ifndef METAL_SDPA_SDPA_PROBLEM_H
#define METAL_SDPA_SDPA_PROBLEM_H

#include <metal_stdlib>

#include "sdpa_args.h"
#include "sdpa_spans.h"

constant bool lse_constant [[function_constant(SDPA_CONSTANT_LSE)]];
constant bool work_constant [[function_constant(SDPA_CONSTANT_WORK)]];
constant bool partial_constant [[function_constant(SDPA_CONSTANT_PARTIAL)]];
constant bool write_lse = is_function_constant_defined(lse_constant) ? lse_constant : false;
constant bool work_list = is_function_constant_defined(work_constant) ? work_constant : false;
constant bool write_partial =
    is_function_constant_defined(partial_constant) ? partial_constant : false;
constant bool write_output = !write_partial;
constant bool write_output_lse = write_lse && write_output;

namespace metal_sdpa {

/// Element [b][head][0][0] of a strided tensor.
inline long head_start(long offset, thread const SdpaStrides& stride, long b, long head) {
  return offset + b * stride.batch + head * stride.head;
}

/// Index of row [b][h][i] in what is packed as [B, Hq, L]: the log-sum-exp.
inline long packed_row(thread const SdpaArgs& args, long b, long h, long i) {
  return (b * long(args.n_heads) + h) * long(args.seq_len) + i;
}

/// Keys that query row i sees: the first so many of its sequence.
inline long visible_keys(thread const SdpaArgs& args, SdpaSequence sequence, long i) {
  return sdpa_band(sequence, args.window, i).end;
}

/// What the threadgroup at `group` works on where all sequences are alike: group.x is the sequence,
/// group.y the head, and group.z counts spans on from the item's.
inline SdpaWorkItem grid_item(thread const SdpaArgs& args, uint3 group) {
  SdpaWorkItem item;
  item.sequence = args.sequence;
  item.batch_index = args.batch_begin + group.x;
  item.span = args.span_begin;
  item.span_len = args.span_len;
  item.n_spans = args.n_spans;
  item.first_span = group.x * args.n_spans;
  return item;
}

/// The same from a list. There group.x is the head, so that an item comes before the next one for
/// every head; `group` is brought into the form above.
inline SdpaWorkItem list_item(device const SdpaWorkItem* work, thread uint3& group) {
  const uint head = group.x;
  group.x = group.y;
  group.y = head;
  return work[group.x];
}

/// Index among the dispatch's partials of the first span of row [h][i]; its others follow.
inline long first_state(thread const SdpaArgs& args, SdpaWorkItem item, long h, long i) {
  const long n_heads = long(args.head_end - args.head_begin);
  const long n_rows = long(args.row_end - args.row_begin);
  const long row = (h - long(args.head_begin)) * n_rows + (i - long(args.row_begin));
  return long(item.first_span) * n_heads * n_rows + row * long(item.n_spans);
}

}  // namespace metal_sdpa

#endif  // METAL_SDPA_SDPA_PROBLEM_H
