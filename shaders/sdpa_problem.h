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
constant bool window_constant [[function_constant(SDPA_CONSTANT_WINDOW)]];
constant bool write_lse = is_function_constant_defined(lse_constant) ? lse_constant : false;
constant bool work_list = is_function_constant_defined(work_constant) ? work_constant : false;
constant bool write_partial =
    is_function_constant_defined(partial_constant) ? partial_constant : false;
constant bool windowed = is_function_constant_defined(window_constant) ? window_constant : false;
constant bool write_output = !write_partial;
constant bool write_output_lse = write_lse && write_output;

namespace metal_sdpa {

/// Element [b][head][0][0] of a strided tensor.
inline long head_start(long offset, thread const SdpaStrides& stride, long b, long head) {
  return offset + b * stride.batch + head * stride.head;
}

/// Where a sequence's rows begin in a tensor that may hold others' rows before them. Only a list of
/// work has such sequences.
inline long first_packed(long row) { return work_list ? row : 0l; }

/// Element [b][head][0][0] of a tensor with a query's rows: row 0 is the sequence's first.
inline long query_start(long offset, thread const SdpaStrides& stride, long b, long head,
                        SdpaSequence sequence) {
  return head_start(offset, stride, b, head) + first_packed(sequence.q_row) * stride.row;
}

/// Index of row i of a sequence among the log-sum-exps.
inline long lse_row(thread const SdpaArgs& args, SdpaSequence sequence, long b, long h, long i) {
  return b * args.lse_batch + h * args.lse_head + first_packed(sequence.q_row) + i;
}

/// One past the last row of the dispatch that is the sequence's to write.
inline uint row_end_of(thread const SdpaArgs& args, SdpaSequence sequence) {
  if (!work_list || args.packed_rows == 0) return args.row_end;
  return metal::min(args.row_end, uint(sequence.query_len));
}

/// The slots that query row i sees. Without the window constant they begin at slot 0, stand a
/// position apart, and all rows are in use.
inline SdpaBand band_of(thread const SdpaArgs& args, SdpaSequence sequence, long i) {
  if (windowed) return sdpa_band(sequence, args.window, i);
  SdpaBand band;
  band.begin = 0;
  band.end = sequence.kv_len;
  if (args.window.right >= 0) {
    const long last = sequence.q_start + i - args.window.key_offset + args.window.right;
    band.end = metal::min(band.end, metal::max(last + 1, 0l));
  }
  return band;
}

/// The slots that any of rows first..last sees, last included.
inline SdpaBand band_of_rows(thread const SdpaArgs& args, SdpaSequence sequence, long first,
                             long last) {
  if (windowed) return sdpa_band_of_rows(sequence, args.window, first, last);
  return band_of(args, sequence, last);
}

/// The slots that every one of rows first..last sees, last included.
inline SdpaBand band_of_all(thread const SdpaArgs& args, SdpaSequence sequence, long first,
                            long last) {
  if (windowed) return sdpa_band_of_all(sequence, args.window, first, last);
  return band_of(args, sequence, first);
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
  item.seen_begin = args.seen_begin;
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

/// Index among the dispatch's partials of the state of row [h][i] of a span; those of the spans
/// behind it follow.
inline long state_of(thread const SdpaArgs& args, SdpaWorkItem item, long h, long i, long span) {
  const long n_heads = long(args.head_end - args.head_begin);
  const long n_rows = long(args.row_end - args.row_begin);
  const long row = (h - long(args.head_begin)) * n_rows + (i - long(args.row_begin));
  return long(item.first_span) * n_heads * n_rows + row * long(item.n_spans) +
         (span - long(item.seen_begin));
}

}  // namespace metal_sdpa

#endif  // METAL_SDPA_SDPA_PROBLEM_H
