// Items are put in order and dealt out: a threadgroup is what a thread takes at once.
#include "cpu/fast/work_list.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>

#include "core/band.h"

namespace metal_sdpa::cpu {
namespace {

// A threadgroup is so large a share of what is left for each thread, down to so small a one of the
// whole: large ones first, since items that follow each other read memory that does, small ones
// last, so that all threads end together.
constexpr double kSharesPerThread = 3;
constexpr double kSmallestPerThread = 32;

std::int64_t items_of(const SdpaProblem& problem, const SequenceWork& work) {
  return work.items_of_head() * problem.n_kv_heads;
}

std::vector<WorkRun> runs_of(const SdpaProblem& problem, const std::vector<SequenceWork>& works) {
  std::vector<WorkRun> runs;
  runs.reserve(works.size());
  const std::int64_t head_counters = most_sets(works);
  std::int64_t items = 0;
  for (const SequenceWork& work : works) {
    WorkRun& run = runs.emplace_back();
    run.first_item = static_cast<std::uint64_t>(items);
    run.sequence = static_cast<std::uint32_t>(work.sequence);
    run.set_rows = static_cast<std::uint32_t>(work.set_rows);
    run.n_sets = static_cast<std::uint32_t>(work.n_sets);
    run.part_spans = static_cast<std::uint32_t>(work.part_spans);
    run.n_parts = static_cast<std::uint32_t>(work.n_parts);
    run.head_counters = static_cast<std::uint32_t>(head_counters);
    items += items_of(problem, work);
  }
  return runs;
}

double total_cost(const SdpaProblem& problem, const std::vector<SequenceWork>& works) {
  double total = 0;
  for (const SequenceWork& work : works) {
    total += work.item_cost * static_cast<double>(items_of(problem, work));
  }
  return total;
}

/// First items of the threadgroups, and one past the last item.
std::vector<std::uint64_t> deal(const SdpaProblem& problem, const std::vector<SequenceWork>& works,
                                int threads) {
  const double total = total_cost(problem, works);
  const double smallest = total / (kSmallestPerThread * threads);
  std::vector<std::uint64_t> first_items{0};
  std::uint64_t item = 0;
  double left = total;
  double room = std::max(smallest, left / (kSharesPerThread * threads));
  for (const SequenceWork& work : works) {
    std::int64_t n_items = items_of(problem, work);
    while (n_items > 0) {
      const bool is_empty = item == first_items.back();
      if (room < work.item_cost && !is_empty) {
        first_items.push_back(item);
        room = std::max(smallest, left / (kSharesPerThread * threads));
        continue;
      }
      const auto fitting = static_cast<std::int64_t>(room / work.item_cost);
      const std::int64_t taken = std::clamp<std::int64_t>(fitting, 1, n_items);
      const double cost = work.item_cost * static_cast<double>(taken);
      item += static_cast<std::uint64_t>(taken);
      n_items -= taken;
      room -= cost;
      left -= cost;
    }
  }
  first_items.push_back(item);
  return first_items;
}

std::vector<std::uint64_t> states_before(const SdpaProblem& problem,
                                         const std::vector<SequenceWork>& works) {
  std::vector<std::uint64_t> before(static_cast<std::size_t>(problem.batch) + 1);
  for (const SequenceWork& work : works) {
    before[static_cast<std::size_t>(work.sequence) + 1] = static_cast<std::uint64_t>(work.states());
  }
  for (std::size_t b = 1; b < before.size(); ++b) before[b] += before[b - 1];
  return before;
}

template <typename T>
std::byte* append(std::byte* to, const T* items, std::size_t count) {
  std::memcpy(to, items, count * sizeof(T));
  return to + count * sizeof(T);
}

}  // namespace

std::int64_t most_sets(const std::vector<SequenceWork>& works) {
  std::int64_t most = 1;
  for (const SequenceWork& work : works) most = std::max(most, work.n_sets);
  return most;
}

bool is_uneven(const SdpaProblem& problem) {
  if (!problem.per_sequence()) return false;
  const SdpaWindow window = window_of(problem);
  const bool has_side = window.left >= 0 || window.right >= 0;
  const SdpaSequence first = sequence_of(problem, 0);
  for (std::int64_t b = 1; b < problem.batch; ++b) {
    const SdpaSequence other = sequence_of(problem, b);
    if (other.kv_len != first.kv_len || other.kv_start != first.kv_start) return true;
    if (other.query_len != first.query_len) return true;
    if (has_side && other.q_start != first.q_start) return true;
  }
  return false;
}

void bind_work(const SdpaProblem& problem, std::vector<SequenceWork> works, int threads,
               PlanStep& step) {
  const auto longer = [](const SequenceWork& a, const SequenceWork& b) {
    return a.item_cost > b.item_cost;
  };
  std::stable_sort(works.begin(), works.end(), longer);
  const std::vector<WorkRun> runs = runs_of(problem, works);
  const std::vector<std::uint64_t> groups = deal(problem, works, threads);
  const std::vector<std::uint64_t> states = states_before(problem, works);
  const WorkHeader header{runs.size(), groups.size() - 1};
  auto bytes = std::make_shared<std::vector<std::byte>>(
      sizeof(header) + runs.size() * sizeof(WorkRun) +
      (groups.size() + states.size()) * sizeof(std::uint64_t));
  std::byte* to = append(bytes->data(), &header, 1);
  to = append(to, runs.data(), runs.size());
  to = append(to, groups.data(), groups.size());
  append(to, states.data(), states.size());
  step.work.index = kBufferWork;
  step.work.bytes = std::move(bytes);
  step.threadgroups = {static_cast<std::uint32_t>(header.n_groups), 1, 1};
}

}  // namespace metal_sdpa::cpu
