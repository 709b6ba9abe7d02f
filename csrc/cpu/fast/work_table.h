// The work list of a batch whose sequences differ, as it lies in memory: which items there are,
// those that take longest first. A batch of equal sequences has none: its grid numbers its items.
#pragma once

#include <cstdint>

#include "shaders/sdpa_args.h"

namespace metal_sdpa::cpu {

/// Buffer index of the list. It holds a WorkHeader, a
/// WorkRun for each sequence, the first item of each threadgroup and one past the last (u64), and
/// for each sequence the states of a KV head, rows times spans, that have room before its own (u64,
/// one more at the end).
constexpr std::uint32_t kBufferWork = SDPA_BUFFER_ITEMS;

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

}  // namespace metal_sdpa::cpu
