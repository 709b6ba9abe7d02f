// Graph::reorder: fewer barriers between fences, the same results.
#include <algorithm>
#include <utility>
#include <vector>

#include "core/graph_state.h"

namespace metal_sdpa {
namespace {

bool is_movable(const GraphNode& node) {
  const DispatchRecord* record = std::get_if<DispatchRecord>(&node);
  if (record == nullptr || !record->access.declared) return false;
  return record->kind == OpKind::rms_norm || record->kind == OpKind::elem_mul ||
         record->kind == OpKind::elem_add;
}

const AccessSet& access_of(const GraphNode& node) { return std::get<DispatchRecord>(node).access; }

/// Level of each node of a run: one more than the deepest earlier node it conflicts with. A replay
/// needs a barrier only where the level grows, and no order needs fewer than the deepest level.
std::vector<std::size_t> conflict_levels(const std::vector<GraphNode>& nodes, std::size_t begin,
                                         std::size_t end) {
  std::vector<std::size_t> levels(end - begin, 0);
  for (std::size_t i = begin; i < end; ++i) {
    for (std::size_t j = begin; j < i; ++j) {
      if (conflict(access_of(nodes[j]), access_of(nodes[i]))) {
        levels[i - begin] = std::max(levels[i - begin], levels[j - begin] + 1);
      }
    }
  }
  return levels;
}

/// Orders nodes begin..end by level, stable within one; returns how many changed place.
std::size_t reorder_run(std::vector<GraphNode>& nodes, std::size_t begin, std::size_t end) {
  const std::vector<std::size_t> levels = conflict_levels(nodes, begin, end);
  std::vector<std::size_t> order(end - begin);
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&levels](std::size_t a, std::size_t b) { return levels[a] < levels[b]; });
  std::vector<GraphNode> sorted;
  sorted.reserve(order.size());
  std::size_t moved = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    moved += order[i] != i ? 1 : 0;
    sorted.push_back(std::move(nodes[begin + order[i]]));
  }
  std::move(sorted.begin(), sorted.end(), nodes.begin() + static_cast<std::ptrdiff_t>(begin));
  return moved;
}

}  // namespace

std::size_t reorder_nodes(std::vector<GraphNode>& nodes) {
  std::size_t moved = 0;
  std::size_t begin = 0;
  while (begin < nodes.size()) {
    std::size_t end = begin;
    while (end < nodes.size() && is_movable(nodes[end])) ++end;
    moved += reorder_run(nodes, begin, end);
    begin = end + 1;
  }
  return moved;
}

}  // namespace metal_sdpa
