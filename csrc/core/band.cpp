// Visible pairs in closed form.
#include "core/band.h"

#include <algorithm>
#include <cmath>

namespace metal_sdpa {
namespace {

constexpr std::int64_t kFarthestSide = std::int64_t{1} << 60;

std::int64_t side(std::int64_t given) { return given > kFarthestSide ? -1 : given; }

/// Sum over i in 0..rows of clamp(first + i / stride, low, high).
double ramp_sum(std::int64_t first, std::int64_t stride, std::int64_t rows, std::int64_t low,
                std::int64_t high) {
  const auto n = static_cast<double>(rows);
  const auto rows_until = [&](std::int64_t value) {
    return std::ceil(static_cast<double>(value - first) * static_cast<double>(stride));
  };
  const double flat = std::clamp(rows_until(low), 0.0, n);
  const double full = std::clamp(rows_until(high), flat, n);
  const double middle = (flat + full - 1) / 2;
  const double ramp = full - flat;
  return flat * static_cast<double>(low) + (n - full) * static_cast<double>(high) +
         ramp * (static_cast<double>(first) + middle / static_cast<double>(stride));
}

}  // namespace

SdpaWindow window_of(const SdpaProblem& problem) {
  SdpaWindow window;
  window.left = side(problem.window_left);
  window.right = problem.causal ? 0 : side(problem.window_right);
  window.key_offset = problem.key_offset;
  window.key_stride = problem.key_stride;
  return window;
}

SdpaSequence sequence_of(const SdpaProblem& problem, std::int64_t b) {
  const auto at = static_cast<std::size_t>(b);
  SdpaSequence sequence{};
  sequence.q_start = problem.sequence_q_start(b);
  sequence.kv_len = problem.sequence_kv_len(b);
  sequence.kv_start = problem.sequence_kv_start(b);
  sequence.query_len = problem.sequence_query_len(b);
  if (problem.has_packed_queries()) sequence.q_row = problem.q_rows[at];
  if (problem.has_packed_keys()) sequence.key_begin = problem.kv_rows[at];
  if (problem.pages.has_value()) sequence.key_begin = first_entry(*problem.pages, b);
  return sequence;
}

std::int64_t first_entry(const PageTable& pages, std::int64_t b) {
  if (pages.starts.empty()) return pages.offset + b * pages.sequence_stride;
  return pages.offset + pages.starts[static_cast<std::size_t>(b)] * pages.entry_stride;
}

SdpaBand visible_band(const SdpaProblem& problem, std::int64_t b) {
  return sdpa_band_of_rows(sequence_of(problem, b), window_of(problem), 0, problem.seq_len - 1);
}

bool has_band_begin(const SdpaProblem& problem) {
  const bool has_rows_out_of_use = problem.query_len.has_value() || !problem.query_lengths.empty();
  return side(problem.window_left) >= 0 || problem.kv_start > 0 || !problem.kv_starts.empty() ||
         (has_rows_out_of_use && !problem.has_packed_queries());
}

double band_pairs(const SdpaSequence& sequence, const SdpaWindow& window, std::int64_t row_begin,
                  std::int64_t row_end, const SdpaBand& keys) {
  const std::int64_t rows = std::min(row_end, sequence.query_len) - row_begin;
  const std::int64_t high = std::min(keys.end, sequence.kv_len);
  const std::int64_t low = std::min(std::max(keys.begin, sequence.kv_start), high);
  if (rows <= 0 || low >= high) return 0;
  const std::int64_t stride = window.key_stride;
  const std::int64_t at = sequence.q_start + row_begin - window.key_offset;
  double ends = static_cast<double>(rows) * static_cast<double>(high);
  double begins = static_cast<double>(rows) * static_cast<double>(low);
  if (window.right >= 0) {
    ends = ramp_sum(sdpa_floor_div(at + window.right, stride) + 1, stride, rows, low, high);
  }
  if (window.left >= 0) {
    const std::int64_t reach = at - window.left + stride - 1;
    begins = ramp_sum(sdpa_floor_div(reach, stride), stride, rows, low, high);
  }
  return std::max(ends - begins, 0.0);
}

double visible_pairs(const SdpaProblem& problem, std::int64_t b) {
  return band_pairs(sequence_of(problem, b), window_of(problem), 0, problem.seq_len,
                    {0, problem.kv_capacity});
}

double visible_pairs(const SdpaProblem& problem) {
  double pairs = 0;
  if (!problem.per_sequence())
    return visible_pairs(problem, 0) * static_cast<double>(problem.batch);
  for (std::int64_t b = 0; b < problem.batch; ++b) pairs += visible_pairs(problem, b);
  return pairs;
}

std::int64_t longest_kv_len(const SdpaProblem& problem) {
  if (problem.kv_lengths.empty()) return problem.kv_len;
  return *std::max_element(problem.kv_lengths.begin(), problem.kv_lengths.end());
}

}  // namespace metal_sdpa
