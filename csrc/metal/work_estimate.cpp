// Visible pairs in closed form.
#include "metal/work_estimate.h"

#include <algorithm>

namespace metal_sdpa {
namespace {

/// Where begin..end is cut in two at a multiple of `unit` from begin; end where it cannot be.
std::int64_t middle_of(std::int64_t begin, std::int64_t end, std::int64_t unit) {
  const std::int64_t units = (end - begin + unit - 1) / unit;
  return units < 2 ? end : begin + units / 2 * unit;
}

/// Cuts `first` in two and puts the upper part into `second`; false where it is one unit.
bool halve(const WorkUnit& unit, WorkBox& first, WorkBox& second) {
  const std::int64_t row = middle_of(first.row_begin, first.row_end, unit.rows);
  const std::int64_t sequence = middle_of(first.batch_begin, first.batch_end, 1);
  const std::int64_t head = middle_of(first.head_begin, first.head_end, unit.heads);
  if (row != first.row_end) {
    first.row_end = second.row_begin = row;
  } else if (sequence != first.batch_end) {
    first.batch_end = second.batch_begin = sequence;
  } else if (head != first.head_end) {
    first.head_end = second.head_begin = head;
  } else {
    return false;
  }
  return true;
}

/// (query, key) pairs that rows row_begin..row_end of sequence b see, of one head.
double row_pairs(const SdpaProblem& problem, std::int64_t b, std::int64_t row_begin,
                 std::int64_t row_end) {
  const std::int64_t kv_len = problem.sequence_kv_len(b);
  const double rows = static_cast<double>(row_end - row_begin);
  if (!problem.causal) return rows * static_cast<double>(kv_len);
  // Row i sees keys 0..q_start + i: none before row -q_start, all of them from row
  // kv_len - 1 - q_start on, and one more a row between the two.
  const std::int64_t q_start = problem.sequence_q_start(b);
  const std::int64_t first_seeing = std::clamp(-q_start, row_begin, row_end);
  const std::int64_t first_full = std::clamp(kv_len - 1 - q_start, first_seeing, row_end);
  const double ramp = static_cast<double>(first_full - first_seeing);
  const double ramp_first = static_cast<double>(q_start + first_seeing + 1);
  const double full = static_cast<double>(row_end - first_full);
  const double ramp_pairs = ramp > 0 ? ramp * (2 * ramp_first + ramp - 1) / 2 : 0;
  return ramp_pairs + full * static_cast<double>(kv_len);
}

}  // namespace

WorkBox whole_work(const SdpaProblem& problem) {
  return {0, problem.batch, 0, problem.n_heads, 0, problem.seq_len};
}

double work_flops(const SdpaProblem& problem, const WorkBox& box) {
  double pairs = 0;
  for (std::int64_t b = box.batch_begin; b < box.batch_end; ++b) {
    pairs += row_pairs(problem, b, box.row_begin, box.row_end);
  }
  const double per_pair = 2.0 * static_cast<double>(problem.head_dim + problem.value_dim);
  return pairs * per_pair * static_cast<double>(box.head_end - box.head_begin);
}

void put_work(const WorkBox& box, SdpaArgs& args) {
  args.batch_begin = static_cast<sdpa_u32>(box.batch_begin);
  args.head_begin = static_cast<sdpa_u32>(box.head_begin);
  args.row_begin = static_cast<sdpa_u32>(box.row_begin);
  args.row_end = static_cast<sdpa_u32>(box.row_end);
}

std::vector<WorkBox> cut_work(const SdpaProblem& problem, const WorkUnit& unit, double max_flops) {
  std::vector<WorkBox> done;
  std::vector<WorkBox> open{whole_work(problem)};
  while (!open.empty()) {
    WorkBox first = open.back();
    open.pop_back();
    WorkBox second = first;
    const bool small = work_flops(problem, first) <= max_flops;
    if (small || !halve(unit, first, second)) {
      done.push_back(first);
      continue;
    }
    open.push_back(second);
    open.push_back(first);
  }
  return done;
}

}  // namespace metal_sdpa
