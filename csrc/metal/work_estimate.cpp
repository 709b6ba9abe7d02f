// What a box costs, and halving what is too much.
#include "metal/work_estimate.h"

#include <algorithm>

#include "core/band.h"

namespace metal_sdpa {
namespace {

/// Where begin..end is cut in two at a multiple of `unit` from begin; end where it cannot be.
std::int64_t middle_of(std::int64_t begin, std::int64_t end, std::int64_t unit) {
  const std::int64_t units = (end - begin + unit - 1) / unit;
  return units < 2 ? end : begin + units / 2 * unit;
}

/// Cuts `first` in two and puts the upper part into `second`; false where it is one unit.
bool halve(const SdpaProblem& problem, const SdpaSpanRule& rule, const WorkUnit& unit,
           WorkBox& first, WorkBox& second) {
  const std::int64_t sequence = middle_of(first.batch_begin, first.batch_end, 1);
  const std::int64_t head = middle_of(first.head_begin, first.head_end, unit.heads);
  const std::int64_t row = middle_of(first.row_begin, first.row_end, unit.rows);
  if (sequence != first.batch_end) {
    first.batch_end = second.batch_begin = sequence;
    return true;
  }
  if (head != first.head_end) {
    first.head_end = second.head_begin = head;
    return true;
  }
  if (row != first.row_end) {
    first.row_end = second.row_begin = row;
    return true;
  }
  const std::int64_t b = first.sequence(first.batch_begin);
  const std::int64_t keys = spans_of(rule, problem.sequence_kv_len(b)).keys;
  const SpanRange seen = seen_spans(problem, rule, first, b);
  const std::int64_t begin = std::max(first.key_begin / keys, seen.begin);
  const std::int64_t end = std::min((first.key_end - 1) / keys + 1, seen.end);
  const std::int64_t span = middle_of(begin, end, 1);
  if (span >= end) return false;
  first.key_end = second.key_begin = span * keys;
  return true;
}

SdpaBand band_of_box(const SdpaProblem& problem, const WorkBox& box, std::int64_t b) {
  return sdpa_band_of_rows(sequence_of(problem, b), window_of(problem), box.row_begin,
                           box.row_end - 1);
}

/// Keys of the longest span that the box has, of those that its rows see.
std::int64_t longest_span(const SdpaProblem& problem, const SdpaSpanRule& rule,
                          const WorkBox& box) {
  std::int64_t longest = 0;
  for (std::int64_t i = box.batch_begin; i < box.batch_end; ++i) {
    const std::int64_t b = box.sequence(i);
    const SdpaBand band = band_of_box(problem, box, b);
    const std::int64_t keys = std::min(band.end, box.key_end) - std::max(band.begin, box.key_begin);
    const std::int64_t span = spans_of(rule, problem.sequence_kv_len(b)).keys;
    longest = std::max(longest, std::min(keys, span));
    if (!problem.per_sequence()) break;
  }
  return longest;
}

}  // namespace

bool same_rows(const WorkBox& a, const WorkBox& b) {
  return a.batch_begin == b.batch_begin && a.batch_end == b.batch_end &&
         a.head_begin == b.head_begin && a.head_end == b.head_end && a.row_begin == b.row_begin &&
         a.row_end == b.row_end;
}

WorkBox whole_work(const SdpaProblem& problem) {
  WorkBox box;
  box.batch_end = problem.batch;
  box.head_end = problem.n_heads;
  box.row_end = problem.seq_len;
  return box;
}

WorkBox whole_work(const SdpaProblem& problem, const std::vector<std::int64_t>& sequences) {
  WorkBox box = whole_work(problem);
  box.listed = &sequences;
  box.batch_end = static_cast<std::int64_t>(sequences.size());
  if (!problem.has_packed_queries()) return box;
  box.row_end = 0;
  for (const std::int64_t b : sequences) {
    box.row_end = std::max(box.row_end, problem.sequence_query_len(b));
  }
  return box;
}

double work_flops(const SdpaProblem& problem, const WorkBox& box) {
  double pairs = 0;
  for (std::int64_t i = box.batch_begin; i < box.batch_end; ++i) {
    pairs += band_pairs(sequence_of(problem, box.sequence(i)), window_of(problem), box.row_begin,
                        box.row_end, {box.key_begin, box.key_end});
    if (problem.per_sequence()) continue;
    pairs *= static_cast<double>(box.sequences());
    break;
  }
  const double per_pair = 2.0 * static_cast<double>(problem.head_dim + problem.value_dim);
  return pairs * per_pair * static_cast<double>(box.heads());
}

KeySpans spans_of(const SdpaSpanRule& rule, std::int64_t kv_len) {
  const std::int64_t keys = sdpa_span_keys(rule, kv_len);
  return {keys, std::max<std::int64_t>(sdpa_span_count(kv_len, keys), 1)};
}

SpanRange seen_spans(const SdpaProblem& problem, const SdpaSpanRule& rule, const WorkBox& box,
                     std::int64_t b) {
  const SdpaBand band = band_of_box(problem, box, b);
  if (band.begin >= band.end) return {0, 1};
  const std::int64_t keys = spans_of(rule, problem.sequence_kv_len(b)).keys;
  return {sdpa_span_of(band.begin, keys), sdpa_span_count(band.end, keys)};
}

double state_bytes(const SdpaProblem& problem, const SdpaSpanRule& rule, const WorkBox& box) {
  std::int64_t n_spans = 0;
  for (std::int64_t i = box.batch_begin; i < box.batch_end; ++i) {
    const std::int64_t count = seen_spans(problem, rule, box, box.sequence(i)).count();
    if (count > 1) n_spans += count;
    if (problem.per_sequence()) continue;
    n_spans *= box.sequences();
    break;
  }
  const double row_bytes = 4.0 * static_cast<double>(problem.value_dim + 2);
  return static_cast<double>(n_spans * box.heads() * box.rows()) * row_bytes;
}

double work_seconds(const SdpaProblem& problem, const SdpaSpanRule& rule, const WorkBox& box,
                    const KernelRate& rate) {
  const double flops = work_flops(problem, box);
  const std::int64_t blocks = (box.rows() + rate.block_rows - 1) / rate.block_rows;
  const double padding =
      static_cast<double>(blocks * rate.block_rows) / static_cast<double>(box.rows());
  const double elements = static_cast<double>(problem.head_dim + problem.value_dim);
  const double thread_seconds =
      rate.element_seconds * elements * static_cast<double>(longest_span(problem, rule, box));
  return std::max({flops / rate.flops_per_second, flops * padding / rate.padded_flops_per_second,
                   thread_seconds});
}

std::vector<WorkBox> cut_work(const SdpaProblem& problem, const WorkBox& whole,
                              const SdpaSpanRule& rule, const WorkUnit& unit,
                              const std::function<bool(const WorkBox&)>& fits) {
  std::vector<WorkBox> done;
  std::vector<WorkBox> open{whole};
  while (!open.empty()) {
    WorkBox first = open.back();
    open.pop_back();
    WorkBox second = first;
    if (fits(first) || !halve(problem, rule, unit, first, second)) {
      done.push_back(first);
      continue;
    }
    open.push_back(second);
    open.push_back(first);
  }
  return done;
}

}  // namespace metal_sdpa
