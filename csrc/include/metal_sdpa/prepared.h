// An attention problem that is validated and planned once and run on the memory of many layers.
#pragma once

#include <cstdint>
#include <memory>

#include "metal_sdpa/export.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa {

/// What every layer of an engine's step has in common: shapes, lengths, page table, features. The
/// bits are those of sdpa() on the same problem.
///
///     PreparedSdpa step(device, problem, block_table);
///     for (const Layer& layer : layers) step.run({layer.q, layer.k, layer.v, layer.out});
///     visibility.kv_lengths = next_lengths;
///     step.update(visibility);
///
/// Copies share the schedule, update() included. Safe from any thread; a run that is under way
/// keeps the schedule that it began with.
class METAL_SDPA_API PreparedSdpa {
 public:
  /// Validates and plans. Errors are those of plan_sdpa; with pages, the numbers in `block_table`
  /// that rows see are checked, unless the problem leaves that out or the memory is not the host's.
  PreparedSdpa(const Device& device, const SdpaProblem& problem, const Buffer& block_table = {});

  Device device() const;
  SdpaProblem problem() const;
  Plan plan() const;

  /// Bytes of `scratch` that are enough for run() and encode() until the next update(), which may
  /// want more: lengths that differ and fewer rows are divided in other ways. 0: none is wanted.
  std::uint64_t scratch_bytes() const;

  /// Runs on these operands and waits. Without a block table in them the prepared one is read, as
  /// it is then. `scratch`: memory of any contents, which no other work may use meanwhile; empty:
  /// the device's own. InvalidArgument for memory that does not fit the problem, as sdpa() says it.
  void run(const SdpaOperands& operands, const Buffer& scratch = {}) const;

  /// Records instead; a capture gets a node like encode_sdpa's, with this schedule. `scratch` must
  /// stay untouched until the work is done.
  void encode(CommandEncoder& encoder, const KernelRegistry& registry, const SdpaOperands& operands,
              const Buffer& scratch = {}) const;

  /// Plans anew for other lengths, starts or windows, at most kv_capacity keys. A table that is
  /// given takes the place of the prepared one; either is checked as the constructor does.
  /// InvalidArgument, and nothing changes, where the problem would not be valid. Of two at once each
  /// counts, one after the other.
  void update(const Visibility& visibility, const Buffer& block_table = {});

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace metal_sdpa
