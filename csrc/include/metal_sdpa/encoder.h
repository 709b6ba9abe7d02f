// Records dispatches into one command buffer, places barriers, commits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "metal_sdpa/buffer.h"
#include "metal_sdpa/device.h"
#include "metal_sdpa/export.h"
#include "metal_sdpa/kernel_registry.h"

namespace metal_sdpa {

class Graph;
class EncoderState;

/// What a dispatch computes; `Graph::reorder` moves only rms_norm, elem_mul and elem_add.
enum class OpKind { rms_norm, elem_mul, elem_add, sdpa, softmax, other };

METAL_SDPA_API const char* op_kind_name(OpKind kind) noexcept;

/// Inline bytes of a binding, at most DeviceLimits::max_inline_bytes.
using InlineBytes = std::vector<std::byte>;

struct Binding {
  std::uint32_t index = 0;
  std::variant<Buffer, InlineBytes> value;
};

struct ThreadgroupMemory {
  std::uint32_t index = 0;
  std::uint32_t byte_len = 0;
};

/// Bytes offset..offset+length of a buffer view.
struct BufferRange {
  Buffer buffer;
  std::size_t offset = 0;
  std::size_t length = 0;
};

/// Ranges that a dispatch touches; nullopt: undeclared, conflicts with everything; empty: none.
using DeclaredRanges = std::optional<std::vector<BufferRange>>;

struct DispatchOptions {
  std::vector<ThreadgroupMemory> threadgroup_memory;
  DeclaredRanges reads;
  DeclaredRanges writes;
};

/// One-shot and for one thread at a time. States: encoding, committed, completed. A call in the
/// wrong state is InvalidArgument. An encoder that is dropped uncommitted is discarded; its
/// memory, imported arrays and pipelines stay alive until the device is done with them.
class METAL_SDPA_API CommandEncoder {
 public:
  explicit CommandEncoder(const Device& device);
  CommandEncoder(CommandEncoder&&) noexcept;
  CommandEncoder& operator=(CommandEncoder&&) noexcept;
  ~CommandEncoder();

  /// Records one dispatch, behind a barrier where its ranges conflict with dispatches since the
  /// last one. InvalidArgument: bad index or range, an index bound twice, a buffer of another
  /// device, a zero or too large grid, inline bytes or threadgroup memory over the limit.
  void encode_threadgroups(const std::shared_ptr<Pipeline>& pipeline,
                           const std::vector<Binding>& bindings, GridSize threadgroups,
                           GridSize threadgroup_size, const DispatchOptions& options = {});

  /// Tags the next encode, and only that one.
  void set_op_kind(OpKind kind);

  /// A barrier by hand: everything before it completes before anything after it starts.
  void memory_barrier();

  /// Barriers placed so far, by hand or by the hazard tracker; barriers of a capture do not count.
  std::size_t barrier_count() const noexcept;

  /// Hands the command buffer to the device's in-order queue and returns.
  void commit();
  /// Waits for it; throws its error (CommandBufferError), or what the interrupt check asked for.
  void wait_until_completed();
  void commit_and_wait();
  /// Seconds that the device spent on it; InvalidArgument before it is completed.
  double gpu_time_s() const;

  /// From here on encodes are recorded into a graph and nothing is encoded.
  void begin_capture();
  Graph end_capture();
  bool capturing() const noexcept;

  Device device() const;
  EncoderState& state();

 private:
  std::unique_ptr<EncoderState> state_;
};

}  // namespace metal_sdpa
