// A recorded sequence of encodes that can be reordered, updated and replayed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "metal_sdpa/encoder.h"
#include "metal_sdpa/export.h"

namespace metal_sdpa {

struct Visibility;

/// What `Graph::nodes` tells of one node.
struct GraphNodeInfo {
  std::size_t index = 0;                   ///< in order of encoding; reorder() moves no sdpa node
  bool barrier = false;                    ///< a barrier placed by hand
  OpKind kind = OpKind::other;             ///< of a barrier: other
  std::string label;                       ///< function or operation name; "barrier"
  std::size_t dispatches = 0;              ///< that a replay encodes now
  bool declared = false;                   ///< reads and writes are both declared
  std::optional<std::int64_t> kv_seq_len;  ///< of an sdpa node
  std::optional<std::int64_t> kv_capacity;
};

/// Copies share one graph. Safe from any thread.
class METAL_SDPA_API Graph {
 public:
  std::vector<GraphNodeInfo> nodes() const;

  /// Moves rms_norm, elem_mul and elem_add nodes with declared ranges so that a replay needs fewer
  /// barriers; every other node is a fence that nothing crosses. Returns how many nodes moved.
  std::size_t reorder();

  /// Encodes every node; the encoder's own hazard tracker decides on barriers, the seam included.
  /// InvalidArgument for an encoder of another device or one that is not encoding.
  void replay(CommandEncoder& encoder) const;

  /// Plans sdpa node `node` anew for another length, 1 to the recorded kv_capacity. The default
  /// q_start follows the length. InvalidArgument for any other node or length.
  void update(std::size_t node, std::int64_t kv_seq_len);

  /// What the queries of sdpa node `node` see. InvalidArgument for any other node.
  Visibility visibility(std::size_t node) const;

  /// Plans sdpa node `node` anew for other lengths, starts or windows. InvalidArgument, and nothing
  /// changes, where the problem would not be valid.
  void update(std::size_t node, const Visibility& visibility);

  struct State;
  explicit Graph(std::shared_ptr<State> state);
  const std::shared_ptr<State>& state() const noexcept { return state_; }

 private:
  std::shared_ptr<State> state_;
};

}  // namespace metal_sdpa
