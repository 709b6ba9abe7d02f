// CommandEncoder: validation, hazards, the state machine.
#include "metal_sdpa/encoder.h"

#include <bitset>
#include <utility>

#include "core/encoder_state.h"
#include "core/fork.h"
#include "core/packed_launch.h"
#include "core/text.h"

namespace metal_sdpa {
namespace {

constexpr const char* kEncode = "encode_threadgroups";

void check_grid(const char* what, const GridSize& grid) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) {
    fail_argument(kEncode, ": ", what, ": [", grid.x, ", ", grid.y, ", ", grid.z,
                  "], every extent takes at least 1");
  }
  std::uint64_t plane = static_cast<std::uint64_t>(grid.x) * grid.y;
  if (__builtin_mul_overflow(plane, static_cast<std::uint64_t>(grid.z), &plane) ||
      plane > INT64_MAX) {
    fail_argument(kEncode, ": ", what, ": [", grid.x, ", ", grid.y, ", ", grid.z,
                  "] has 2^63 entries or more");
  }
}

void check_threadgroup_size(const Pipeline& pipeline, const GridSize& size) {
  check_grid("threadgroup_size", size);
  if (size.count() > pipeline.max_threads_per_threadgroup) {
    fail_argument(kEncode, ": threadgroup_size: ", size.count(), " threads, but ", pipeline.name,
                  " takes at most ", pipeline.max_threads_per_threadgroup);
  }
}

void check_threadgroup_memory(const std::vector<ThreadgroupMemory>& memory,
                              const DeviceLimits& limits) {
  std::uint64_t total = 0;
  std::bitset<64> used;
  for (const ThreadgroupMemory& entry : memory) {
    if (entry.index > limits.max_threadgroup_memory_index) {
      fail_argument(kEncode, ": threadgroup_memory: index ", entry.index, ", takes 0 to ",
                    limits.max_threadgroup_memory_index);
    }
    if (used[entry.index]) {
      fail_argument(kEncode, ": threadgroup_memory: index ", entry.index, " is given twice");
    }
    if (entry.byte_len == 0 || entry.byte_len % 16 != 0) {
      fail_argument(kEncode, ": threadgroup_memory: ", entry.byte_len, " bytes at index ",
                    entry.index, ", takes a positive multiple of 16");
    }
    used.set(entry.index);
    total += entry.byte_len;
  }
  if (total > limits.max_threadgroup_memory) {
    fail_argument(kEncode, ": threadgroup_memory: ", total, " bytes, the device takes at most ",
                  limits.max_threadgroup_memory);
  }
}

void check_buffer(const Backend& backend, const Buffer& buffer, const char* what) {
  if (!buffer.valid()) fail_argument(kEncode, ": ", what, ": the buffer is empty");
  if (buffer.storage()->backend != &backend) {
    fail_argument(kEncode, ": ", what, ": the buffer belongs to another device");
  }
}

DispatchBinding resolve_binding(const Backend& backend, const Binding& binding) {
  DispatchBinding resolved;
  resolved.index = binding.index;
  if (const Buffer* buffer = std::get_if<Buffer>(&binding.value)) {
    check_buffer(backend, *buffer, "bindings");
    resolved.storage = buffer->storage();
    resolved.byte_offset = buffer->byte_offset();
    resolved.byte_len = buffer->byte_len();
    return resolved;
  }
  const InlineBytes& bytes = std::get<InlineBytes>(binding.value);
  if (bytes.empty() || bytes.size() > backend.limits().max_inline_bytes) {
    fail_argument(kEncode, ": bindings: ", bytes.size(), " bytes at index ", binding.index,
                  ", takes 1 to ", backend.limits().max_inline_bytes);
  }
  resolved.bytes = bytes;
  resolved.byte_len = bytes.size();
  return resolved;
}

std::vector<DispatchBinding> resolve_bindings(const Backend& backend,
                                              const std::vector<Binding>& bindings) {
  std::vector<DispatchBinding> resolved;
  resolved.reserve(bindings.size());
  std::bitset<64> used;
  for (const Binding& binding : bindings) {
    if (binding.index > backend.limits().max_binding_index) {
      fail_argument(kEncode, ": bindings: index ", binding.index, ", takes 0 to ",
                    backend.limits().max_binding_index);
    }
    if (used[binding.index]) {
      fail_argument(kEncode, ": bindings: index ", binding.index, " is given twice");
    }
    used.set(binding.index);
    resolved.push_back(resolve_binding(backend, binding));
  }
  return resolved;
}

std::vector<AddressRange> resolve_ranges(const Backend& backend, const DeclaredRanges& declared,
                                         const char* what) {
  std::vector<AddressRange> ranges;
  if (!declared.has_value()) return ranges;
  for (const BufferRange& range : *declared) {
    check_buffer(backend, range.buffer, what);
    const std::size_t size = range.buffer.byte_len();
    if (range.offset > size || range.length > size - range.offset) {
      fail_argument(kEncode, ": ", what, ": bytes ", range.offset, " to ", range.offset, " + ",
                    range.length, " leave the view of ", size, " bytes");
    }
    const std::uint64_t begin = range.buffer.address() + range.offset;
    if (range.length != 0) ranges.push_back({begin, begin + range.length});
  }
  return ranges;
}

void require_declared_writable(const DeclaredRanges& writes) {
  if (!writes.has_value()) return;
  for (const BufferRange& range : *writes) {
    if (range.buffer.read_only()) {
      fail_argument(kEncode, ": writes: the buffer is read-only");
    }
  }
}

const char* status_name(CommandStatus status) {
  switch (status) {
    case CommandStatus::encoding:
      return "encoding";
    case CommandStatus::committed:
      return "committed";
    case CommandStatus::completed:
      return "completed";
    case CommandStatus::failed:
      return "failed";
  }
  return "?";
}

void require_same_process(const EncoderState& state, const char* call) {
  if (state.fork_generation == fork_generation()) return;
  fail_argument(call, ": the encoder was made before fork(); make a new one in this process");
}

}  // namespace

const char* op_kind_name(OpKind kind) noexcept {
  switch (kind) {
    case OpKind::rms_norm:
      return "rms_norm";
    case OpKind::elem_mul:
      return "elem_mul";
    case OpKind::elem_add:
      return "elem_add";
    case OpKind::sdpa:
      return "sdpa";
    case OpKind::softmax:
      return "softmax";
    case OpKind::other:
      return "other";
  }
  return "?";
}

EncoderState::EncoderState(const Device& owner)
    : device(owner),
      stream(owner.backend()->command_stream(owner.options())),
      fork_generation(metal_sdpa::fork_generation()) {}

void EncoderState::require_encoding(const char* call) const {
  require_same_process(*this, call);
  if (status == CommandStatus::encoding) return;
  fail_argument(call, ": the encoder is ", status_name(status), "; an encoder is used once");
}

OpKind EncoderState::take_op_kind(OpKind fallback) {
  const OpKind kind = has_op_kind_ ? op_kind_ : fallback;
  has_op_kind_ = false;
  return kind;
}

void EncoderState::record(DispatchRecord record) {
  if (capture == nullptr) {
    encode(record);
    return;
  }
  const std::lock_guard<std::mutex> lock(capture->mutex);
  capture->nodes.emplace_back(std::move(record));
}

void EncoderState::encode(const DispatchRecord& record) {
  if (hazards.needs_barrier(record.access)) barrier();
  stream->dispatch(record.dispatch);
  hazards.add(record.access);
}

void EncoderState::barrier() {
  stream->barrier();
  hazards.clear();
  ++barriers;
}

CommandEncoder::CommandEncoder(const Device& device)
    : state_(std::make_unique<EncoderState>(device)) {}
CommandEncoder::CommandEncoder(CommandEncoder&&) noexcept = default;
CommandEncoder& CommandEncoder::operator=(CommandEncoder&&) noexcept = default;
CommandEncoder::~CommandEncoder() = default;

void CommandEncoder::encode_threadgroups(const std::shared_ptr<Pipeline>& pipeline,
                                         const std::vector<Binding>& bindings,
                                         GridSize threadgroups, GridSize threadgroup_size,
                                         const DispatchOptions& options) {
  const OpKind kind = state_->take_op_kind(OpKind::other);
  state_->require_encoding(kEncode);
  const Backend& backend = *state_->device.backend();
  if (pipeline == nullptr) fail_argument(kEncode, ": pipeline: got none");
  if (pipeline->backend != &backend) {
    fail_argument(kEncode, ": pipeline: ", pipeline->name, " belongs to another device");
  }
  check_grid("threadgroups", threadgroups);
  check_threadgroup_size(*pipeline, threadgroup_size);
  check_threadgroup_memory(options.threadgroup_memory, backend.limits());
  require_declared_writable(options.writes);

  DispatchRecord record;
  record.kind = kind;
  record.dispatch.pipeline = pipeline;
  record.dispatch.bindings = resolve_bindings(backend, bindings);
  record.dispatch.threadgroup_memory = options.threadgroup_memory;
  record.dispatch.threadgroups = threadgroups;
  record.dispatch.threadgroup_size = threadgroup_size;
  record.access.declared = options.reads.has_value() && options.writes.has_value();
  record.access.reads = resolve_ranges(backend, options.reads, "reads");
  record.access.writes = resolve_ranges(backend, options.writes, "writes");
  if (pipeline->packed_dtype.has_value()) {
    check_packed_dispatch(record.dispatch, *pipeline->packed_dtype, backend.limits().max_head_dim,
                          kEncode);
  }
  state_->record(std::move(record));
}

void CommandEncoder::set_op_kind(OpKind kind) {
  state_->require_encoding("set_op_kind");
  state_->op_kind_ = kind;
  state_->has_op_kind_ = true;
}

void CommandEncoder::memory_barrier() {
  state_->require_encoding("memory_barrier");
  if (state_->capture == nullptr) {
    state_->barrier();
    return;
  }
  const std::lock_guard<std::mutex> lock(state_->capture->mutex);
  state_->capture->nodes.emplace_back(BarrierNode{});
}

std::size_t CommandEncoder::barrier_count() const noexcept { return state_->barriers; }

void CommandEncoder::commit() {
  state_->require_encoding("commit");
  if (state_->capture != nullptr) {
    fail_argument("commit: a capture is open; call end_capture first");
  }
  state_->status = CommandStatus::committed;
  state_->stream->commit();
}

void CommandEncoder::wait_until_completed() {
  require_same_process(*state_, "wait_until_completed");
  if (state_->status == CommandStatus::encoding) {
    fail_argument("wait_until_completed: the encoder is encoding; call commit first");
  }
  if (state_->status == CommandStatus::completed) return;
  state_->status = CommandStatus::failed;
  state_->stream->wait();
  state_->status = CommandStatus::completed;
}

void CommandEncoder::commit_and_wait() {
  state_->require_encoding("commit_and_wait");
  if (state_->capture != nullptr) {
    fail_argument("commit_and_wait: a capture is open; call end_capture first");
  }
  state_->status = CommandStatus::failed;
  state_->stream->commit_and_wait();
  state_->status = CommandStatus::completed;
}

double CommandEncoder::gpu_time_s() const {
  if (state_->status != CommandStatus::completed) {
    fail_argument("gpu_time_s: the encoder is ", status_name(state_->status),
                  ", takes a completed one");
  }
  return state_->stream->gpu_time_s();
}

void CommandEncoder::begin_capture() {
  state_->require_encoding("begin_capture");
  if (state_->capture != nullptr) fail_argument("begin_capture: a capture is open already");
  state_->capture = std::make_shared<Graph::State>(state_->device, state_->fork_generation);
}

Graph CommandEncoder::end_capture() {
  state_->require_encoding("end_capture");
  if (state_->capture == nullptr) fail_argument("end_capture: no capture is open");
  state_->take_op_kind(OpKind::other);
  return Graph(std::exchange(state_->capture, nullptr));
}

bool CommandEncoder::capturing() const noexcept { return state_->capture != nullptr; }

Device CommandEncoder::device() const { return state_->device; }

EncoderState& CommandEncoder::state() { return *state_; }

}  // namespace metal_sdpa
