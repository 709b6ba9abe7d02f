// How much a part of a problem is, and cutting problems into parts that a dispatch may take.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "metal_sdpa/sdpa.h"
#include "shaders/sdpa_args.h"
#include "shaders/sdpa_spans.h"

namespace metal_sdpa {

/// A part of a problem: some sequences, some query heads, some rows, and of a single sequence some
/// keys.
struct WorkBox {
  std::int64_t batch_begin = 0, batch_end = 0;  ///< of `listed`, where that is given
  std::int64_t head_begin = 0, head_end = 0;
  std::int64_t row_begin = 0, row_end = 0;
  std::int64_t key_begin = 0, key_end = std::numeric_limits<std::int64_t>::max();
  const std::vector<std::int64_t>* listed = nullptr;  ///< sequences of the problem

  /// Which sequence of the problem number `i` of batch_begin..batch_end is.
  std::int64_t sequence(std::int64_t i) const {
    return listed == nullptr ? i : (*listed)[static_cast<std::size_t>(i)];
  }
  std::int64_t sequences() const { return batch_end - batch_begin; }
  std::int64_t heads() const { return head_end - head_begin; }
  std::int64_t rows() const { return row_end - row_begin; }
};

/// Whether two boxes are parts of the keys of the same rows.
bool same_rows(const WorkBox& a, const WorkBox& b);

/// All of the problem.
WorkBox whole_work(const SdpaProblem& problem);

/// All of some sequences, to the last row that any of them has to write. The list outlives the box.
WorkBox whole_work(const SdpaProblem& problem, const std::vector<std::int64_t>& sequences);

/// Floating-point operations of the box; 2 for a multiply-add, over the D products of a score and
/// the Dv products of its value.
double work_flops(const SdpaProblem& problem, const WorkBox& box);

/// How the keys of one sequence are cut.
struct KeySpans {
  std::int64_t keys = 1;   ///< of one span
  std::int64_t count = 1;  ///< at least 1
};

KeySpans spans_of(const SdpaSpanRule& rule, std::int64_t kv_len);

/// Spans begin..end, counted from key 0.
struct SpanRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t count() const { return end - begin; }
};

/// The spans of sequence b that any row of the box sees, whatever keys the box has; one where there
/// are none: its rows are written all the same.
SpanRange seen_spans(const SdpaProblem& problem, const SdpaSpanRule& rule, const WorkBox& box,
                     std::int64_t b);

/// Bytes of the states that the box leaves: those of its sequences of which it
/// sees more than one span.
double state_bytes(const SdpaProblem& problem, const SdpaSpanRule& rule, const WorkBox& box);

/// What a kernel is sure to reach on the smallest GPU (7-core M1: 68 GB/s, 2.3 TFLOP/s f32), used
/// only to cut dispatches.
struct KernelRate {
  double flops_per_second;
  /// The same where every thread of a threadgroup counts as if it had a row, of block_rows.
  double padded_flops_per_second = std::numeric_limits<double>::infinity();
  std::int64_t block_rows = 1;
  /// Of a thread that goes through the keys of a span alone: for one of the D + Dv elements of one.
  double element_seconds = 0;
};

/// One percent of the f32 peak where every thread has a row, or 5 % with all threads counted; on
/// the GPU it was measured on it reached the 5 %, and an element took a thread 24 ns.
inline constexpr KernelRate kRowKernelRate{2e10, 1e11, 32, 1e-7};
/// Without grouped queries decode does half an operation a byte of f32.
inline constexpr KernelRate kDecodeKernelRate{2e10};
/// Bound by arithmetic.
inline constexpr KernelRate kPrefillKernelRate{2e11};

double work_seconds(const SdpaProblem& problem, const SdpaSpanRule& rule, const WorkBox& box,
                    const KernelRate& rate);

/// What a kernel cannot cut: rows of one tile, and query heads that it takes together.
struct WorkUnit {
  std::int64_t rows = 1;
  std::int64_t heads = 1;
};

/// Boxes that `fits` takes and that make up `whole`, where they can be cut so far: between
/// sequences first, then between heads, between tiles of rows, and last between spans. So what a
/// tile has never depends on the batch. Boxes of the same rows follow each other.
std::vector<WorkBox> cut_work(const SdpaProblem& problem, const WorkBox& whole,
                              const SdpaSpanRule& rule, const WorkUnit& unit,
                              const std::function<bool(const WorkBox&)>& fits);

}  // namespace metal_sdpa
