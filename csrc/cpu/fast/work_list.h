// The work list of a batch whose sequences differ: which items there are, those that take longest
// first. Shared by the plans and the kernels of both families.
//
// A batch of equal sequences has none: its items are numbered by the grid.
#pragma once

#include <cstdint>
#include <vector>

#include "metal_sdpa/sdpa.h"

namespace metal_sdpa::cpu {

/// Buffer index of the list; the other devices have no such buffer. It holds a WorkHeader, a
/// WorkRun for each sequence, the first item of each threadgroup and one past the last (u64), and
/// for each sequence the spans before its own that have room for a state (u64, one more at the
/// end).
constexpr std::uint32_t kBufferWork = 13;

struct WorkHeader {
  std::uint64_t n_runs;
  std::uint64_t n_groups;  ///< threadgroups
};

/// The items of one sequence: its KV heads one after the other, for each the parts of its spans,
/// for each part the sets of its rows.
struct WorkRun {
  std::uint64_t first_item;
  std::uint32_t sequence;
  std::uint32_t set_rows;  ///< query rows of a set, but the last
  std::uint32_t n_sets;
  std::uint32_t part_spans;  ///< spans of a part, but the last
  std::uint32_t n_parts;
  std::uint32_t head_counters;  ///< counters of a KV head, a set has one; the same in all runs
};

/// How the work of one sequence is cut.
struct SequenceWork {
  std::int64_t sequence = 0;
  std::int64_t spans = 0;  ///< that any row sees
  std::int64_t set_rows = 1;
  std::int64_t n_sets = 1;
  std::int64_t part_spans = 1;
  std::int64_t n_parts = 1;
  bool has_states = false;  ///< its items leave their states in memory
  double item_cost = 0;     ///< mean, in any unit

  std::int64_t items_of_head() const { return n_sets * n_parts; }
};

/// Counters of spans done that a KV head needs.
std::int64_t most_sets(const std::vector<SequenceWork>& works);

/// Whether sequences of the batch differ in what they see.
bool is_uneven(const SdpaProblem& problem);

/// Binds the list to the step, and makes its grid.
void bind_work(const SdpaProblem& problem, std::vector<SequenceWork> works, int threads,
               PlanStep& step);

}  // namespace metal_sdpa::cpu
