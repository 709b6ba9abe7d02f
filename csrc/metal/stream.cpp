// Encoding, committing, waiting.
#include "metal/stream.h"

#include <algorithm>
#include <string>
#include <utility>

#include "core/text.h"
#include "metal/fault_report.h"
#include "metal/library.h"
#include "metal/storage.h"

namespace metal_sdpa {
namespace {

constexpr const char* kEncode = "encode_threadgroups";

MTL::Size mtl_size(const GridSize& grid) { return MTL::Size(grid.x, grid.y, grid.z); }

/// The pipeline's own threadgroup memory and the dispatch's share one limit.
void check_threadgroup_memory(const MetalPipeline& pipeline, const Dispatch& dispatch,
                              const MTL::Device& device) {
  std::uint64_t total = pipeline.static_threadgroup_memory();
  for (const ThreadgroupMemory& entry : dispatch.threadgroup_memory) total += entry.byte_len;
  const std::uint64_t limit = device.maxThreadgroupMemoryLength();
  if (total <= limit) return;
  fail_argument(kEncode, ": threadgroup_memory: ", pipeline.name, " uses ", total, " bytes, ",
                pipeline.static_threadgroup_memory(), " of them its own; the device takes at most ",
                limit);
}

/// Called by Metal on a thread of its own.
void complete(InFlight& in_flight, const std::shared_ptr<Submission>& submission,
              const MTL::CommandBuffer& command_buffer) noexcept {
  const AutoreleaseScope pool;
  std::string error;
  if (command_buffer.status() == MTL::CommandBufferStatusError) {
    error = fault_report(*submission, command_buffer);
  }
  const double gpu_time_s = command_buffer.GPUEndTime() - command_buffer.GPUStartTime();
  in_flight.finish(submission, std::move(error), std::max(gpu_time_s, 0.0));
}

}  // namespace

MetalStream::MetalStream(std::shared_ptr<MetalQueue> queue) : queue_(std::move(queue)) {
  queue_->require_same_process("command_encoder");
}

MetalStream::~MetalStream() {
  if (!queue_->same_process()) {
    encoder_.detach();
    command_buffer_.detach();
    return;
  }
  const AutoreleaseScope pool;
  if (encoder_) encoder_->endEncoding();  // Metal aborts where an open encoder is let go
  if (command_buffer_ && !committed_) queue_->release_slot();
  encoder_.reset();
  command_buffer_.reset();
}

void MetalStream::open_command_buffer() {
  if (command_buffer_) return;
  command_buffer_ = queue_->command_buffer();
  submission_->label = text_of("metal_sdpa ", queue_->next_label());
  command_buffer_->setLabel(ns_string(submission_->label));
}

MTL::ComputeCommandEncoder& MetalStream::encoder() {
  if (encoder_) return *encoder_.get();
  open_command_buffer();
  encoder_ = NS::RetainPtr(command_buffer_->computeCommandEncoder(MTL::DispatchTypeConcurrent));
  if (!encoder_) fail(ErrorCode::command_buffer, kEncode, ": the device gave no encoder");
  encoder_->setLabel(ns_string(submission_->label));
  encoder_->waitForFence(queue_->fence());
  return *encoder_.get();
}

void MetalStream::bind(MTL::ComputeCommandEncoder& target, const Dispatch& dispatch) {
  for (const DispatchBinding& binding : dispatch.bindings) {
    if (binding.storage == nullptr) {
      target.setBytes(binding.bytes.data(), binding.bytes.size(), binding.index);
      continue;
    }
    const auto* buffer = static_cast<const MTL::Buffer*>(binding.storage->native_handle());
    target.setBuffer(buffer, binding.byte_offset, binding.index);
    submission_->storages.push_back(binding.storage);
  }
  for (const ThreadgroupMemory& entry : dispatch.threadgroup_memory) {
    target.setThreadgroupMemoryLength(entry.byte_len, entry.index);
  }
}

void MetalStream::dispatch(const Dispatch& dispatch) {
  queue_->require_same_process(kEncode);
  const AutoreleaseScope pool;
  const auto& pipeline = static_cast<const MetalPipeline&>(*dispatch.pipeline);
  check_threadgroup_memory(pipeline, dispatch, queue_->device());
  MTL::ComputeCommandEncoder& target = encoder();
  target.setComputePipelineState(pipeline.state());
  bind(target, dispatch);
  target.insertDebugSignpost(pipeline.label());  // an error names the last one reached
  target.dispatchThreadgroups(mtl_size(dispatch.threadgroups), mtl_size(dispatch.threadgroup_size));
  submission_->pipelines.push_back(dispatch.pipeline);
}

void MetalStream::barrier() {
  queue_->require_same_process("memory_barrier");
  if (!encoder_) return;  // nothing to order yet
  const AutoreleaseScope pool;
  encoder_->memoryBarrier(MTL::BarrierScopeBuffers);
}

void MetalStream::end_encoding() {
  if (!encoder_) return;
  encoder_->updateFence(queue_->fence());
  encoder_->endEncoding();
  encoder_.reset();
}

void MetalStream::commit() {
  queue_->require_same_process("commit");
  const AutoreleaseScope pool;
  open_command_buffer();
  end_encoding();
  if (queue_->residency() != nullptr) queue_->residency()->flush();
  const MTL::HandlerFunction handler = [in_flight = queue_->in_flight(),
                                        submission = submission_](MTL::CommandBuffer* buffer) {
    complete(*in_flight, submission, *buffer);
  };
  command_buffer_->addCompletedHandler(handler);
  queue_->in_flight()->add(submission_);
  command_buffer_->commit();
  committed_ = true;
  queue_->release_slot();
}

void MetalStream::wait() {
  queue_->require_same_process("wait_until_completed");
  queue_->in_flight()->wait(*submission_);
}

void MetalStream::commit_and_wait() {
  commit();
  wait();
}

double MetalStream::gpu_time_s() const { return queue_->in_flight()->gpu_time_s(*submission_); }

}  // namespace metal_sdpa
