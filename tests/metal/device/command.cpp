// MTLCommandQueue, MTLCommandBuffer and MTLResidencySet.
#include "command.hpp"

#include <Block.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "control.hpp"
#include "executor.hpp"

namespace software_metal {
namespace {

constexpr const char* kDomain = "MTLCommandBufferErrorDomain";

double now() {
  auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(time).count();
}

// ----- Methods of MTLCommandBuffer

struct BufferMethods : CommandBuffer {
  Object* encoder_of_type(unsigned long type) {
    if (!check_encoding("computeCommandEncoder")) return nullptr;
    bool concurrent = type == MTL::DispatchTypeConcurrent;
    return (new ComputeEncoder(this, concurrent))->autorelease();
  }
  Object* serial_encoder() { return encoder_of_type(MTL::DispatchTypeSerial); }

  bool check_encoding(const char* call) {
    std::lock_guard<std::mutex> lock(mutex);
    if (status >= MTL::CommandBufferStatusCommitted) {
      violation("%s after commit", call);
      return false;
    }
    if (open_encoder == nullptr) return true;
    violation("%s while another encoder is open", call);
    return false;
  }

  void commit() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      if (status >= MTL::CommandBufferStatusCommitted) {
        return violation("commit of a command buffer that is committed already");
      }
      if (open_encoder != nullptr) return violation("commit with an encoder that is not ended");
      status = MTL::CommandBufferStatusCommitted;
    }
    queue->note_commit();
    submit_to_executor(this);
  }

  void enqueue() {
    std::lock_guard<std::mutex> lock(mutex);
    if (status != MTL::CommandBufferStatusNotEnqueued) {
      return violation("enqueue of a command buffer that is enqueued already");
    }
    status = MTL::CommandBufferStatusEnqueued;
  }

  void wait_until(unsigned long wanted, const char* call) {
    std::unique_lock<std::mutex> lock(mutex);
    if (status < MTL::CommandBufferStatusCommitted) {
      return violation("%s before commit: it would wait forever", call);
    }
    changed.wait(lock, [&] { return status >= wanted; });
  }
  void wait_completed() { wait_until(MTL::CommandBufferStatusCompleted, "waitUntilCompleted"); }
  void wait_scheduled() { wait_until(MTL::CommandBufferStatusScheduled, "waitUntilScheduled"); }

  void add_handler(const char* call, std::vector<const void*>& handlers, const void* block) {
    std::lock_guard<std::mutex> lock(mutex);
    if (status >= MTL::CommandBufferStatusCommitted) return violation("%s after commit", call);
    handlers.push_back(_Block_copy(block));
  }
  void add_completed(const void* block) {
    add_handler("addCompletedHandler", completed_handlers, block);
  }
  void add_scheduled(const void* block) {
    add_handler("addScheduledHandler", scheduled_handlers, block);
  }

  unsigned long get_status() {
    std::lock_guard<std::mutex> lock(mutex);
    return status;
  }
  Object* get_error() {
    std::lock_guard<std::mutex> lock(mutex);
    return error.get();
  }
  double gpu_start() { return finished() ? start_time : 0; }
  double gpu_end() { return finished() ? end_time : 0; }
  bool finished() {
    std::lock_guard<std::mutex> lock(mutex);
    return status >= MTL::CommandBufferStatusCompleted;
  }
  bool get_retains() { return retains; }
  Object* get_queue() { return queue.get(); }
  Object* get_device() { return queue->device.get(); }
  Object* logs() { return nullptr; }
  unsigned long get_error_options() { return error_options; }
  void push_group(String* name) { debug_groups.push_back(text_of(name)); }
  void pop_group() {
    if (debug_groups.empty()) return violation("popDebugGroup without pushDebugGroup");
    debug_groups.pop_back();
  }
  void use_set(ResidencySet* set) { residency_sets.emplace_back(set); }
};

// ----- Methods of MTLCommandQueue

struct QueueMethods : CommandQueue {
  Object* make(bool retains, unsigned long error_options = 0) {
    enter();
    return (new CommandBuffer(this, retains, error_options))->autorelease();
  }
  Object* command_buffer() { return make(true); }
  Object* unretained() { return make(false); }
  Object* with_descriptor(CommandBufferDescriptor* descriptor) {
    if (descriptor == nullptr) return make(true);
    return make(descriptor->retained, descriptor->error_options);
  }
  Object* get_device() { return device.get(); }
  void add_set(ResidencySet* set) {
    std::lock_guard<std::mutex> lock(mutex);
    residency_sets.emplace_back(set);
  }
  void remove_set(ResidencySet* set) {
    std::lock_guard<std::mutex> lock(mutex);
    std::erase_if(residency_sets, [&](const Ref<ResidencySet>& own) { return own.get() == set; });
  }
  void boundary() {}
};

struct DescriptorMethods : CommandBufferDescriptor {
  bool get_retained() { return retained; }
  void set_retained(bool value) { retained = value; }
  unsigned long get_options() { return error_options; }
  void set_options(unsigned long value) { error_options = value; }
};

// ----- Methods of MTLCommandBufferEncoderInfo

struct InfoMethods : EncoderInfo {
  Object* get_label() { return String::make(label); }
  long get_state() { return state; }
  Object* get_signposts() { return signposts.get(); }
};

// ----- Methods of MTLResidencySet

struct SetMethods : ResidencySet {
  void add(Object* allocation) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!holds(allocation)) allocations.emplace_back(allocation);
  }
  void remove(Object* allocation) {
    std::lock_guard<std::mutex> lock(mutex);
    std::erase_if(allocations, [&](const Ref<Object>& own) { return own.get() == allocation; });
  }
  void remove_all() {
    std::lock_guard<std::mutex> lock(mutex);
    allocations.clear();
  }
  bool holds(Object* allocation) {
    return std::any_of(allocations.begin(), allocations.end(),
                       [&](const Ref<Object>& own) { return own.get() == allocation; });
  }
  bool contains(Object* allocation) {
    std::lock_guard<std::mutex> lock(mutex);
    return holds(allocation);
  }
  unsigned long size() {
    std::lock_guard<std::mutex> lock(mutex);
    return allocations.size();
  }
  void nothing() {}
  Object* get_device() { return device.get(); }
};

struct SetDescriptorMethods : ResidencySetDescriptor {
  unsigned long get_capacity() { return capacity; }
  void set_capacity(unsigned long value) { capacity = value; }
};

void register_command_buffer(Registry& registry) {
  using M = BufferMethods;
  Builder<CommandBuffer>(registry)
      .method<&M::serial_encoder>("computeCommandEncoder")
      .method<&M::encoder_of_type>("computeCommandEncoderWithDispatchType:")
      .method<&M::commit>("commit")
      .method<&M::enqueue>("enqueue")
      .method<&M::wait_completed>("waitUntilCompleted")
      .method<&M::wait_scheduled>("waitUntilScheduled")
      .method<&M::add_completed>("addCompletedHandler:")
      .method<&M::add_scheduled>("addScheduledHandler:")
      .method<&M::get_status>("status")
      .method<&M::get_error>("error")
      .method<&M::gpu_start>("GPUStartTime")
      .method<&M::gpu_end>("GPUEndTime")
      .method<&M::gpu_start>("kernelStartTime")
      .method<&M::gpu_end>("kernelEndTime")
      .method<&M::get_retains>("retainedReferences")
      .method<&M::get_queue>("commandQueue")
      .method<&M::get_device>("device")
      .method<&M::logs>("logs")
      .method<&M::get_error_options>("errorOptions")
      .method<&M::push_group>("pushDebugGroup:")
      .method<&M::pop_group>("popDebugGroup")
      .method<&M::use_set>("useResidencySet:")
      .method<&Labelled::get_label>("label")
      .method<&Labelled::set_label>("setLabel:");
}

}  // namespace

void register_command_classes(Registry& registry) {
  register_command_buffer(registry);
  Builder<CommandQueue>(registry)
      .method<&QueueMethods::command_buffer>("commandBuffer")
      .method<&QueueMethods::unretained>("commandBufferWithUnretainedReferences")
      .method<&QueueMethods::with_descriptor>("commandBufferWithDescriptor:")
      .method<&QueueMethods::get_device>("device")
      .method<&QueueMethods::add_set>("addResidencySet:")
      .method<&QueueMethods::remove_set>("removeResidencySet:")
      .method<&QueueMethods::boundary>("insertDebugCaptureBoundary")
      .method<&Labelled::get_label>("label")
      .method<&Labelled::set_label>("setLabel:");
  Builder<CommandBufferDescriptor>(registry)
      .allocatable()
      .method<&DescriptorMethods::get_retained>("retainedReferences")
      .method<&DescriptorMethods::set_retained>("setRetainedReferences:")
      .method<&DescriptorMethods::get_options>("errorOptions")
      .method<&DescriptorMethods::set_options>("setErrorOptions:");
  Builder<EncoderInfo>(registry)
      .method<&InfoMethods::get_label>("label")
      .method<&InfoMethods::get_state>("errorState")
      .method<&InfoMethods::get_signposts>("debugSignposts");
  Builder<ResidencySet>(registry)
      .method<&SetMethods::add>("addAllocation:")
      .method<&SetMethods::remove>("removeAllocation:")
      .method<&SetMethods::remove_all>("removeAllAllocations")
      .method<&SetMethods::contains>("containsAllocation:")
      .method<&SetMethods::size>("allocationCount")
      .method<&SetMethods::nothing>("commit")
      .method<&SetMethods::nothing>("requestResidency")
      .method<&SetMethods::nothing>("endResidency")
      .method<&SetMethods::get_device>("device")
      .method<&Labelled::get_label>("label");
  Builder<ResidencySetDescriptor>(registry)
      .allocatable()
      .method<&SetDescriptorMethods::get_capacity>("initialCapacity")
      .method<&SetDescriptorMethods::set_capacity>("setInitialCapacity:")
      .method<&Labelled::get_label>("label")
      .method<&Labelled::set_label>("setLabel:");
}

// ----- CommandQueue

void CommandQueue::enter() {
  std::unique_lock<std::mutex> lock(mutex);
  if (unfinished_ >= max_command_buffers && committed_ == 0) {
    violation(
        "commandBuffer: %lu command buffers of the queue are not committed: it would wait "
        "forever",
        unfinished_);
  } else {
    left_.wait(lock, [&] { return unfinished_ < max_command_buffers; });
  }
  ++unfinished_;
}

void CommandQueue::note_commit() {
  std::lock_guard<std::mutex> lock(mutex);
  ++committed_;
}

void CommandQueue::leave(bool was_committed) {
  std::lock_guard<std::mutex> lock(mutex);
  --unfinished_;
  if (was_committed) --committed_;
  left_.notify_all();
}

// ----- CommandBuffer

CommandBuffer::CommandBuffer(CommandQueue* from, bool retains_resources, unsigned long options)
    : Labelled(class_of<CommandBuffer>()),
      queue(from),
      retains(retains_resources),
      error_options(options) {}

CommandBuffer::~CommandBuffer() {
  if (status < MTL::CommandBufferStatusCommitted) queue->leave(false);
  for (const void* block : scheduled_handlers) _Block_release(block);
  for (const void* block : completed_handlers) _Block_release(block);
}

void CommandBuffer::set_status(unsigned long value) {
  std::lock_guard<std::mutex> lock(mutex);
  status = value;
  changed.notify_all();
}

void CommandBuffer::call_handlers(std::vector<const void*>& handlers) {
  for (const void* handler : handlers) {
    reinterpret_cast<void (^)(CommandBuffer*)>(const_cast<void*>(handler))(this);
    _Block_release(handler);
  }
  handlers.clear();
}

void CommandBuffer::execute() {
  if (unsigned delay = command_buffer_delay_us()) usleep(delay);
  set_status(MTL::CommandBufferStatusScheduled);
  call_handlers(scheduled_handlers);
  start_time = now();
  if (std::optional<CommandBufferFault> fault = take_command_buffer_fault()) {
    finish(Failure{fault->text, fault->code});
  } else {
    finish(run_encoders());
  }
}

std::optional<Failure> CommandBuffer::run_encoders() {
  for (std::size_t i = 0; i < encoders.size(); ++i) {
    std::optional<Failure> failure = run_encoder(*encoders[i]);
    if (!failure) continue;
    failure->encoder = i;
    return failure;
  }
  return std::nullopt;
}

// Dispatches in any order that the recorded dependencies allow.
std::optional<Failure> CommandBuffer::run_encoder(const RecordedEncoder& encoder) {
  Random random = next_random();
  std::size_t n = encoder.dispatches.size();
  std::vector<bool> done(n, false);
  std::vector<unsigned> ready;
  for (std::size_t left = n; left > 0; --left) {
    ready.clear();
    for (unsigned i = 0; i < n; ++i) {
      const auto& after = encoder.dispatches[i].after;
      bool can_run = !done[i] && std::all_of(after.begin(), after.end(),
                                             [&](unsigned earlier) { return done[earlier]; });
      if (can_run) ready.push_back(i);
    }
    unsigned pick = ready[random.below(static_cast<unsigned>(ready.size()))];
    done[pick] = true;
    const Dispatch& dispatch = encoder.dispatches[pick].dispatch;
    std::string failure = run_dispatch(dispatch, random);
    if (failure.empty()) continue;
    Failure out;
    out.text = format("%s (command buffer '%s', encoder '%s', dispatch %u: %s%s)", failure.c_str(),
                      label.c_str(), encoder.label.c_str(), pick, dispatch.label.c_str(),
                      dispatch.pipeline->name());
    out.dispatch = pick;
    return out;
  }
  return std::nullopt;
}

// The state of an encoder, and the signposts that it passed, up to the failure.
static EncoderInfo* encoder_info(const RecordedEncoder& encoder, std::size_t index,
                                 const Failure& failure) {
  auto* info = new EncoderInfo;
  info->autorelease();
  info->label = encoder.label;
  info->state = MTL::CommandEncoderErrorStateCompleted;
  if (index == failure.encoder) info->state = MTL::CommandEncoderErrorStateFaulted;
  if (index > failure.encoder) info->state = MTL::CommandEncoderErrorStatePending;
  std::vector<Ref<Object>> passed;
  for (const Signpost& signpost : encoder.signposts) {
    bool reached = index < failure.encoder ||
                   (index == failure.encoder && signpost.position <= failure.dispatch);
    if (reached) passed.emplace_back(String::make(signpost.name));
  }
  info->signposts = Array::make(std::move(passed));
  return info;
}

Error* CommandBuffer::make_error(const Failure& failure) const {
  Error* made = Error::make(kDomain, failure.code, failure.text);
  if ((error_options & MTL::CommandBufferErrorOptionEncoderExecutionStatus) == 0) return made;
  std::vector<Ref<Object>> infos;
  for (std::size_t i = 0; i < encoders.size(); ++i) {
    infos.emplace_back(encoder_info(*encoders[i], i, failure));
  }
  Ref<Object> key = String::make("MTLCommandBufferEncoderInfoErrorKey");
  auto* info = new Dictionary;
  info->autorelease();
  info->items.emplace_back(key, Array::make(std::move(infos)));
  made->user_info = info;
  return made;
}

// Resources go first, then the waiters are woken, then the handlers run: a waiter must not count
// on the handlers having run.
void CommandBuffer::finish(const std::optional<Failure>& failure) {
  end_time = now();
  if (failure) error = make_error(*failure);
  encoders.clear();
  count(SOFTWARE_METAL_COMMAND_BUFFERS);
  queue->leave(true);
  set_status(failure ? MTL::CommandBufferStatusError : MTL::CommandBufferStatusCompleted);
  call_handlers(completed_handlers);
}

}  // namespace software_metal
