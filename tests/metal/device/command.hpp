// Queues, command buffers, compute encoders and what they record.
#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "objects.hpp"
#include "threadgroup.hpp"

namespace software_metal {

// ----- What an encoder records

/// A buffer at an offset, or inline bytes; empty where nothing is bound.
struct Binding {
  Ref<Buffer> buffer;
  unsigned long offset = 0;
  std::shared_ptr<GuardedMemory> bytes;

  bool is_bound() const { return buffer || bytes; }
  unsigned long available() const { return bytes ? bytes->size() : buffer->length - offset; }
  void* address() const { return bytes ? bytes->data() : buffer->contents + offset; }
};

/// A use of a buffer that its command buffer does not retain.
class UnretainedUse {
 public:
  explicit UnretainedUse(const Buffer& buffer) : uses_(buffer.uses_in_flight) { ++*uses_; }
  UnretainedUse(UnretainedUse&&) = default;
  UnretainedUse& operator=(UnretainedUse&&) = default;
  ~UnretainedUse() {
    if (uses_) --*uses_;
  }

 private:
  std::shared_ptr<std::atomic<int>> uses_;
};

struct Dispatch {
  struct Argument {
    unsigned index;
    Binding binding;  ///< empty where the command buffer does not retain
    void* address;
    const Buffer* buffer;  ///< to tell buffers apart, not to be followed
  };
  Ref<Pipeline> pipeline;
  std::vector<Argument> buffers;
  std::array<unsigned long, kMaxBindings> threadgroup_memory{};
  MTL::Size groups{};
  MTL::Size threads_in_grid{};
  MTL::Size group_size{};
  std::string label;  ///< debug groups around the dispatch
  std::vector<UnretainedUse> unretained;
};

/// Dispatches before a barrier finish before those behind it start: all of them, or those that
/// use one of `resources`.
struct Barrier {
  bool all = true;
  std::vector<Ref<Buffer>> resources;
};

/// A dispatch and the dispatches that must have run before it.
struct RecordedDispatch {
  Dispatch dispatch;
  std::vector<unsigned> after;
};

/// A name that a program puts between dispatches; errors tell which ones were passed.
struct Signpost {
  std::size_t position;  ///< dispatches recorded before it
  std::string name;
};

struct RecordedEncoder {
  std::string label;
  std::vector<Signpost> signposts;
  bool concurrent = false;
  std::vector<RecordedDispatch> dispatches;
};

/// Runs one dispatch; "" or what went wrong.
std::string run_dispatch(const Dispatch& dispatch, Random& random);

// ----- Objects

class ResidencySetDescriptor : public Labelled {
 public:
  static constexpr const char* kClassName = "MTLResidencySetDescriptor";
  ResidencySetDescriptor() : Labelled(class_of<ResidencySetDescriptor>()) {}
  unsigned long capacity = 0;
};

class ResidencySet : public Labelled {
 public:
  static constexpr const char* kClassName = "MTLResidencySet";
  explicit ResidencySet(Device* device) : Labelled(class_of<ResidencySet>()), device(device) {}
  Ref<Device> device;
  std::mutex mutex;
  std::vector<Ref<Object>> allocations;
};

class CommandQueue : public Labelled {
 public:
  static constexpr const char* kClassName = "MTLCommandQueue";
  CommandQueue(Device* device, unsigned long max)
      : Labelled(class_of<CommandQueue>()), device(device), max_command_buffers(max) {}

  /// Blocks while the limit of unfinished command buffers is reached.
  void enter();
  void leave(bool was_committed);
  void note_commit();

  Ref<Device> device;
  const unsigned long max_command_buffers;
  std::mutex mutex;
  std::vector<Ref<ResidencySet>> residency_sets;

 private:
  std::condition_variable left_;
  unsigned long unfinished_ = 0;
  unsigned long committed_ = 0;
};

class CommandBufferDescriptor : public Object {
 public:
  static constexpr const char* kClassName = "MTLCommandBufferDescriptor";
  CommandBufferDescriptor() : Object(class_of<CommandBufferDescriptor>()) {}
  bool retained = true;
  unsigned long error_options = 0;
};

/// What an error says about one encoder.
class EncoderInfo : public Object {
 public:
  static constexpr const char* kClassName = "MTLCommandBufferEncoderInfo";
  EncoderInfo() : Object(class_of<EncoderInfo>()) {}
  std::string label;
  long state = 0;  ///< MTLCommandEncoderErrorState
  Ref<Array> signposts;
};

/// Where a command buffer failed, and why.
struct Failure {
  std::string text;
  long code = MTL::CommandBufferErrorInternal;
  std::size_t encoder = 0;
  std::size_t dispatch = 0;
};

class ComputeEncoder;

class CommandBuffer : public Labelled {
 public:
  static constexpr const char* kClassName = "MTLCommandBuffer";
  CommandBuffer(CommandQueue* queue, bool retains, unsigned long error_options);
  ~CommandBuffer() override;

  /// Called by the executor.
  void execute();

  Ref<CommandQueue> queue;
  const bool retains;
  const unsigned long error_options;
  std::mutex mutex;
  std::condition_variable changed;
  unsigned long status = MTL::CommandBufferStatusNotEnqueued;
  std::vector<std::unique_ptr<RecordedEncoder>> encoders;
  ComputeEncoder* open_encoder = nullptr;
  std::vector<const void*> scheduled_handlers, completed_handlers;
  Ref<Error> error;
  double start_time = 0, end_time = 0;
  std::vector<std::string> debug_groups;
  std::vector<Ref<ResidencySet>> residency_sets;

 private:
  std::optional<Failure> run_encoders();
  std::optional<Failure> run_encoder(const RecordedEncoder& encoder);
  Error* make_error(const Failure& failure) const;
  void set_status(unsigned long value);
  void call_handlers(std::vector<const void*>& handlers);
  void finish(const std::optional<Failure>& failure);
};

class ComputeEncoder : public Labelled {
 public:
  static constexpr const char* kClassName = "MTLComputeCommandEncoder";
  ComputeEncoder(CommandBuffer* command_buffer, bool concurrent);
  ~ComputeEncoder() override;

  bool is_open(const char* call) const;
  void end();
  void add_dispatch(Dispatch dispatch);
  void add_barrier(Barrier barrier);

  Ref<CommandBuffer> command_buffer;
  RecordedEncoder* record;
  bool ended = false;
  Ref<Pipeline> pipeline;
  std::array<Binding, kMaxBindings> bindings;
  std::array<unsigned long, kMaxBindings> threadgroup_memory{};
  std::vector<std::string> debug_groups;
  std::vector<Barrier> barriers;
  std::vector<unsigned> barrier_positions;  ///< dispatches recorded before each barrier
};

}  // namespace software_metal
