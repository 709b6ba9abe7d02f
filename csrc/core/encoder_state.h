// The inside of a CommandEncoder.
#pragma once

#include <cstdint>
#include <memory>

#include "core/backend.h"
#include "core/graph_state.h"
#include "core/hazards.h"
#include "metal_sdpa/encoder.h"

namespace metal_sdpa {

class EncoderState {
 public:
  explicit EncoderState(const Device& device);

  /// InvalidArgument unless the encoder is encoding, in the process that made it.
  void require_encoding(const char* call) const;

  /// Encodes behind a barrier where needed, or adds a node to the open capture.
  void record(DispatchRecord record);
  /// Encodes, whatever capture is open (there is none when this is called).
  void encode(const DispatchRecord& record);
  void barrier();

  /// The kind that set_op_kind gave for the next encode; it counts once.
  OpKind take_op_kind(OpKind fallback);

  Device device;
  std::unique_ptr<CommandStream> stream;
  HazardTracker hazards;
  std::size_t barriers = 0;
  CommandStatus status = CommandStatus::encoding;
  std::shared_ptr<Graph::State> capture;
  std::uint64_t fork_generation;

 private:
  bool has_op_kind_ = false;
  OpKind op_kind_ = OpKind::other;
  friend class CommandEncoder;
};

}  // namespace metal_sdpa
