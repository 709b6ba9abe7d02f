// The work list of a batch whose sequences differ, made by the plans of both families.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/fast/work_table.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa::cpu {

/// How the work of one sequence is cut.
struct SequenceWork {
  std::int64_t sequence = 0;
  std::int64_t spans = 0;  ///< that any row sees
  std::int64_t rows = 1;   ///< that are to be written under a KV head
  std::int64_t set_rows = 1;
  std::int64_t n_sets = 1;
  std::int64_t part_spans = 1;
  std::int64_t n_parts = 1;
  bool has_states = false;  ///< its items leave their states in memory
  double item_cost = 0;     ///< mean, in any unit

  std::int64_t items_of_head() const { return n_sets * n_parts; }
  /// Of a KV head, which are left in memory.
  std::int64_t states() const { return has_states ? spans * rows : 0; }
};

/// Counters of spans done that a KV head needs.
std::int64_t most_sets(const std::vector<SequenceWork>& works);

/// Whether sequences of the batch differ in what they see.
bool is_uneven(const SdpaProblem& problem);

/// Binds the list to the step, and makes its grid.
void bind_work(const SdpaProblem& problem, std::vector<SequenceWork> works, int threads,
               PlanStep& step);

}  // namespace metal_sdpa::cpu
