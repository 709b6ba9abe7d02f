// The inside of a Graph.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/hazards.h"
#include "core/scratch.h"
#include "metal_sdpa/graph.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa {

struct BarrierNode {};

/// One attention call: planned anew when its length changes, with the memory it was recorded with.
struct SdpaNode {
  SdpaProblem problem;
  SdpaOperands operands;
  KernelRegistry registry;
  ScratchList scratch;                  ///< sized for kv_capacity
  std::vector<DispatchRecord> records;  ///< of the plan for the present length
};

using GraphNode = std::variant<BarrierNode, DispatchRecord, SdpaNode>;

struct Graph::State {
  State(const Device& owner, std::uint64_t generation)
      : device(owner), fork_generation(generation) {}

  Device device;
  std::uint64_t fork_generation;
  mutable std::mutex mutex;
  std::vector<GraphNode> nodes;  ///< guarded by `mutex`
};

/// Stable list scheduling of the nodes between fences; returns how many nodes moved.
std::size_t reorder_nodes(std::vector<GraphNode>& nodes);

}  // namespace metal_sdpa
