// What every attention kernel reads from its arguments: function constants, and where one
// sequence, head and row of a problem stand.
#ifndef METAL_SDPA_SDPA_PROBLEM_H
#define METAL_SDPA_SDPA_PROBLEM_H

#include <metal_stdlib>

#include "sdpa_args.h"
#include "sdpa_spans.h"

constant bool lse_constant [[function_constant(SDPA_CONSTANT_LSE)]];
constant bool sequences_constant [[function_constant(SDPA_CONSTANT_SEQUENCES)]];
constant bool write_lse = is_function_constant_defined(lse_constant) ? lse_constant : false;
constant bool per_sequence =
    is_function_constant_defined(sequences_constant) ? sequences_constant : false;

namespace metal_sdpa {

/// Element [b][head][0][0] of a strided tensor.
inline long head_start(long offset, thread const SdpaStrides& stride, long b, long head) {
  return offset + b * stride.batch + head * stride.head;
}

/// Index of row [b][h][i] in what is packed as [B, Hq, L]: the log-sum-exp and the partials.
inline long packed_row(thread const SdpaArgs& args, long b, long h, long i) {
  return (b * long(args.n_heads) + h) * long(args.seq_len) + i;
}

/// Keys that query row i sees: the first so many of its sequence.
inline long visible_keys(thread const SdpaArgs& args, SdpaSequence sequence, long i) {
  if (args.causal == 0) return sequence.kv_len;
  const long below = sequence.q_start + i + 1;
  return metal::min(metal::max(below, 0l), long(sequence.kv_len));
}

/// Keys of one span of a sequence.
inline long span_keys_of(thread const SdpaArgs& args, SdpaSequence sequence) {
  return sdpa_span_keys(args.span_len, sequence.kv_len, args.n_heads > args.n_kv_heads);
}

}  // namespace metal_sdpa

#endif  // METAL_SDPA_SDPA_PROBLEM_H
