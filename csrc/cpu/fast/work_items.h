// A launch's items, as the kernels walk over them (work_table.h has the table).
#pragma once

#include "cpu/fast/launch_view.h"
#include "cpu/fast/work_table.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

inline const WorkHeader* work_header(const NativeLaunch& launch) {
  return static_cast<const WorkHeader*>(launch.bindings[kBufferWork].data);
}
inline const WorkRun* work_runs(const WorkHeader* header) {
  return reinterpret_cast<const WorkRun*>(header + 1);
}
inline const std::uint64_t* work_groups(const WorkHeader* header) {
  return reinterpret_cast<const std::uint64_t*>(work_runs(header) + header->n_runs);
}
inline const std::uint64_t* work_states(const WorkHeader* header) {
  return work_groups(header) + header->n_groups + 1;
}

/// One item: which of those of a KV head.
struct ItemPlace {
  sdpa_i64 b;
  sdpa_i64 kv_h;
  sdpa_i64 index;
};

/// The items of some threadgroups: of the work list where there is one, else threadgroups (items of
/// a KV head, n_kv_heads, batch) are items themselves.
class WorkItems {
 public:
  /// `even` says how the sequences are cut where there is no list.
  WorkItems(const NativeLaunch& launch, WorkRange work, const WorkRun& even)
      : grid_(launch.threadgroups), begin_(work.begin), end_(work.end), run_(&even) {
    const WorkHeader* header = work_header(launch);
    if (header == nullptr) return;
    const std::uint64_t* groups = work_groups(header);
    begin_ = groups[work.begin];
    end_ = groups[work.end];
    run_ = run_of(header, begin_);
    end_of_runs_ = work_runs(header) + header->n_runs;
  }

  std::uint64_t begin() const { return begin_; }
  std::uint64_t end() const { return end_; }
  /// How the sequence of the last item placed is cut.
  const WorkRun& run() const { return *run_; }

  /// Items are asked for in increasing order.
  ItemPlace place(std::uint64_t item) {
    if (end_of_runs_ == nullptr) {
      const std::uint64_t head = item / grid_.x;
      return {static_cast<sdpa_i64>(head / grid_.y), static_cast<sdpa_i64>(head % grid_.y),
              static_cast<sdpa_i64>(item % grid_.x)};
    }
    while (run_ + 1 < end_of_runs_ && item >= run_[1].first_item) ++run_;
    const std::uint64_t of_sequence = item - run_->first_item;
    const std::uint64_t of_head = std::uint64_t{run_->n_sets} * run_->n_parts;
    return {run_->sequence, static_cast<sdpa_i64>(of_sequence / of_head),
            static_cast<sdpa_i64>(of_sequence % of_head)};
  }

 private:
  /// The last run that begins at or before `item`.
  static const WorkRun* run_of(const WorkHeader* header, std::uint64_t item) {
    const WorkRun* first = work_runs(header);
    std::uint64_t n = header->n_runs;
    while (n > 1) {
      const std::uint64_t half = n / 2;
      if (first[half].first_item <= item) first += half;
      n -= half;
    }
    return first;
  }

  const GridSize& grid_;
  std::uint64_t begin_;
  std::uint64_t end_;
  const WorkRun* run_;
  const WorkRun* end_of_runs_ = nullptr;  ///< nullptr: no list
};

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
