// MTLComputeCommandEncoder: records dispatches and checks what Metal's validation layer checks.
#include <algorithm>
#include <cstring>

#include "command.hpp"
#include "control.hpp"

namespace software_metal {
namespace {

// Alignment that an offset needs: the argument's type, 4 bytes at least in constant space.
unsigned long offset_alignment(const msl_host::Argument& argument) {
  unsigned long align = std::min(argument.align, 16u);
  return argument.is_reference ? std::max(align, 4ul) : align;
}

unsigned long volume(MTL::Size size) { return size.width * size.height * size.depth; }

bool has_zero(MTL::Size size) { return size.width == 0 || size.height == 0 || size.depth == 0; }

std::string size_text(MTL::Size size) {
  return format("(%lu, %lu, %lu)", size.width, size.height, size.depth);
}

// ----- Checks at a dispatch; "" or what is wrong

std::string check_buffer(const msl_host::Argument& argument, const Binding& binding) {
  std::string name = format("buffer '%s' at index %u", argument.name, argument.index);
  if (!binding.is_bound()) return name + " is not bound";
  if (binding.buffer && binding.offset >= binding.buffer->length) {
    return format("%s: offset %lu is past the end of %s, %lu bytes long", name.c_str(),
                  binding.offset, binding.buffer->title().c_str(), binding.buffer->length);
  }
  if (binding.buffer && binding.offset % offset_alignment(argument) != 0) {
    return format("%s: offset %lu is not a multiple of %lu", name.c_str(), binding.offset,
                  offset_alignment(argument));
  }
  if (argument.is_reference && binding.available() < argument.size) {
    return format("%s: %lu bytes are bound, but the function reads %u", name.c_str(),
                  binding.available(), argument.size);
  }
  return "";
}

std::string check_threadgroup_memory(const ComputeEncoder& encoder) {
  unsigned long total = 0;
  for (unsigned long length : encoder.threadgroup_memory) total += length;
  if (total > kMaxThreadgroupMemory) {
    return format("%lu bytes of threadgroup memory, but the device has %lu", total,
                  kMaxThreadgroupMemory);
  }
  for (const msl_host::Argument* argument : encoder.pipeline->arguments()) {
    if (argument->kind != msl_host::ArgumentKind::threadgroup) continue;
    if (encoder.threadgroup_memory[argument->index] != 0) continue;
    return format("threadgroup memory '%s' at index %u has no length", argument->name,
                  argument->index);
  }
  return "";
}

std::string check_sizes(const Pipeline& pipeline, MTL::Size grid, MTL::Size group) {
  if (has_zero(group)) return "threadsPerThreadgroup " + size_text(group) + " has a zero";
  if (has_zero(grid)) return "grid " + size_text(grid) + " has a zero";
  // Each side by itself first: the product of large sides may wrap.
  if (std::max({group.width, group.height, group.depth}) > kMaxThreads ||
      volume(group) > pipeline.max_threads) {
    return format("threadsPerThreadgroup %s has %lu threads, but the pipeline takes %lu",
                  size_text(group).c_str(), volume(group), pipeline.max_threads);
  }
  if (pipeline.whole_simdgroups && volume(group) % msl_host::kLanes != 0) {
    return format("threadsPerThreadgroup %s is not a multiple of 32, as the pipeline promises",
                  size_text(group).c_str());
  }
  constexpr unsigned long kMaxGrid = 0xffffffffull;
  if (std::max({grid.width, grid.height, grid.depth}) > kMaxGrid) {
    return "grid " + size_text(grid) + " is wider than 32 bits";
  }
  return "";
}

std::string check_dispatch(const ComputeEncoder& encoder, MTL::Size grid, MTL::Size group) {
  if (!encoder.pipeline) return "no compute pipeline state is set";
  std::string wrong = check_sizes(*encoder.pipeline, grid, group);
  if (wrong.empty()) wrong = check_threadgroup_memory(encoder);
  for (const msl_host::Argument* argument : encoder.pipeline->arguments()) {
    if (!wrong.empty()) break;
    if (argument->kind != msl_host::ArgumentKind::buffer) continue;
    wrong = check_buffer(*argument, encoder.bindings[argument->index]);
  }
  return wrong;
}

// ----- Methods

struct Methods : ComputeEncoder {
  void set_pipeline(Pipeline* value) {
    if (!is_open("setComputePipelineState")) return;
    if (value == nullptr) return violation("setComputePipelineState: pipeline is nil");
    pipeline = value;
  }

  bool check_index(const char* call, unsigned long index) const {
    if (!is_open(call)) return false;
    if (index < kMaxBindings) return true;
    violation("%s: index %lu, but the last one is %u", call, index, kMaxBindings - 1);
    return false;
  }

  void set_buffer(Buffer* buffer, unsigned long offset, unsigned long index) {
    if (!check_index("setBuffer", index)) return;
    if (buffer != nullptr && offset >= buffer->length) {
      violation("setBuffer: offset %lu is past the end of %s, %lu bytes long, at index %lu", offset,
                buffer->title().c_str(), buffer->length, index);
      return;
    }
    bindings[index] = Binding{buffer, offset, nullptr};
  }

  void set_buffers(Buffer* const* buffers, const unsigned long* offsets, NS::Range range) {
    for (unsigned long i = 0; i < range.length; ++i) {
      set_buffer(buffers[i], offsets[i], range.location + i);
    }
  }

  void set_buffer_offset(unsigned long offset, unsigned long index) {
    if (!check_index("setBufferOffset", index)) return;
    Binding& binding = bindings[index];
    if (!binding.buffer) {
      return violation("setBufferOffset: no buffer is bound at index %lu", index);
    }
    if (offset >= binding.buffer->length) {
      return violation("setBufferOffset: offset %lu is past the end of %s, %lu bytes long", offset,
                       binding.buffer->title().c_str(), binding.buffer->length);
    }
    binding.offset = offset;
  }

  void set_bytes(const void* bytes, unsigned long length, unsigned long index) {
    if (!check_index("setBytes", index)) return;
    if (bytes == nullptr || length == 0) {
      return violation("setBytes: no bytes at index %lu", index);
    }
    if (length > kMaxInlineBytes) {
      return violation("setBytes: %lu bytes at index %lu, but the limit is %lu", length, index,
                       kMaxInlineBytes);
    }
    auto memory = std::make_shared<GuardedMemory>(length);
    std::memcpy(memory->data(), bytes, length);
    bindings[index] = Binding{{}, 0, std::move(memory)};
  }

  void set_threadgroup_memory(unsigned long length, unsigned long index) {
    if (!check_index("setThreadgroupMemoryLength", index)) return;
    if (length % 16 != 0) {
      return violation("setThreadgroupMemoryLength: %lu at index %lu is not a multiple of 16",
                       length, index);
    }
    if (length > kMaxThreadgroupMemory) {
      return violation("setThreadgroupMemoryLength: %lu bytes at index %lu, but the device has %lu",
                       length, index, kMaxThreadgroupMemory);
    }
    threadgroup_memory[index] = length;
  }

  void dispatch_groups(MTL::Size groups, MTL::Size group_size) {
    dispatch("dispatchThreadgroups", groups, group_size, groups,
             {groups.width * group_size.width, groups.height * group_size.height,
              groups.depth * group_size.depth});
  }

  void dispatch_threads(MTL::Size threads, MTL::Size size) {
    auto up = [](unsigned long a, unsigned long b) { return b == 0 ? 0 : (a + b - 1) / b; };
    MTL::Size groups(up(threads.width, size.width), up(threads.height, size.height),
                     up(threads.depth, size.depth));
    dispatch("dispatchThreads", threads, size, groups, threads);
  }

  void dispatch(const char* call, MTL::Size grid, MTL::Size group_size, MTL::Size groups,
                MTL::Size threads) {
    if (!is_open(call)) return;
    std::string wrong = check_dispatch(*this, grid, group_size);
    if (!wrong.empty()) {
      return violation("%s: %s%s%s", call, pipeline ? pipeline->name() : "", pipeline ? ": " : "",
                       wrong.c_str());
    }
    Dispatch made;
    made.pipeline = pipeline;
    made.threadgroup_memory = threadgroup_memory;
    made.groups = groups;
    made.threads_in_grid = threads;
    made.group_size = group_size;
    for (const std::string& group : debug_groups) made.label += group + "/";
    for (const msl_host::Argument* argument : pipeline->arguments()) {
      if (argument->kind != msl_host::ArgumentKind::buffer) continue;
      const Binding& bound = bindings[argument->index];
      made.buffers.push_back({argument->index, bound, bound.address(), bound.buffer.get()});
    }
    add_dispatch(std::move(made));
  }

  void dispatch_indirect(Buffer*, unsigned long, MTL::Size) {
    violation("dispatchThreadgroupsWithIndirectBuffer: not built in the software device");
  }

  void barrier_scope(unsigned long scope) {
    if (!is_open("memoryBarrierWithScope")) return;
    if ((scope & MTL::BarrierScopeBuffers) == 0) return;
    add_barrier({true, {}});
  }
  void barrier_resources(Buffer* const* resources, unsigned long n) {
    if (!is_open("memoryBarrierWithResources")) return;
    Barrier barrier{false, {}};
    barrier.resources.assign(resources, resources + n);
    add_barrier(std::move(barrier));
  }

  void end_encoding() {
    if (is_open("endEncoding")) end();
  }
  void push_group(String* name) {
    if (is_open("pushDebugGroup")) debug_groups.push_back(text_of(name));
  }
  void pop_group() {
    if (!is_open("popDebugGroup")) return;
    if (debug_groups.empty()) return violation("popDebugGroup without pushDebugGroup");
    debug_groups.pop_back();
  }
  void signpost(String* name) {
    if (!is_open("insertDebugSignpost")) return;
    record->signposts.push_back({record->dispatches.size(), text_of(name)});
  }
  void update_fence(Fence* fence) {
    if (!is_open("updateFence")) return;
    if (fence == nullptr) return violation("updateFence: fence is nil");
    fence->is_updated = true;
  }
  // Command buffers run one after the other here, which is stricter than any fence.
  void wait_for_fence(Fence* fence) {
    if (!is_open("waitForFence")) return;
    if (fence == nullptr) return violation("waitForFence: fence is nil");
    if (!fence->is_updated) {
      violation("waitForFence: no encoder before this one updates %s", fence->title().c_str());
    }
  }
  void rename(String* name) {
    label = text_of(name);
    if (!ended) record->label = label;
  }
  void use_resource(Object*, unsigned long) {}
  void use_resources(Object* const*, unsigned long, unsigned long) {}
  unsigned long type() {
    return record->concurrent ? MTL::DispatchTypeConcurrent : MTL::DispatchTypeSerial;
  }
  Object* get_device() { return command_buffer->queue->device.get(); }
};

bool shares_resource(const Dispatch& dispatch, const Barrier& barrier) {
  for (const Dispatch::Argument& argument : dispatch.buffers) {
    for (const Ref<Buffer>& resource : barrier.resources) {
      if (argument.buffer == resource.get()) return true;
    }
  }
  return false;
}

}  // namespace

void register_encoder_classes(Registry& registry) {
  Builder<ComputeEncoder>(registry)
      .method<&Methods::set_pipeline>("setComputePipelineState:")
      .method<&Methods::set_buffer>("setBuffer:offset:atIndex:")
      .method<&Methods::set_buffers>("setBuffers:offsets:withRange:")
      .method<&Methods::set_buffer_offset>("setBufferOffset:atIndex:")
      .method<&Methods::set_bytes>("setBytes:length:atIndex:")
      .method<&Methods::set_threadgroup_memory>("setThreadgroupMemoryLength:atIndex:")
      .method<&Methods::dispatch_groups>("dispatchThreadgroups:threadsPerThreadgroup:")
      .method<&Methods::dispatch_threads>("dispatchThreads:threadsPerThreadgroup:")
      .method<&Methods::dispatch_indirect>(
          "dispatchThreadgroupsWithIndirectBuffer:indirectBufferOffset:threadsPerThreadgroup:")
      .method<&Methods::barrier_scope>("memoryBarrierWithScope:")
      .method<&Methods::barrier_resources>("memoryBarrierWithResources:count:")
      .method<&Methods::end_encoding>("endEncoding")
      .method<&Methods::push_group>("pushDebugGroup:")
      .method<&Methods::pop_group>("popDebugGroup")
      .method<&Methods::signpost>("insertDebugSignpost:")
      .method<&Methods::update_fence>("updateFence:")
      .method<&Methods::wait_for_fence>("waitForFence:")
      .method<&Methods::use_resource>("useResource:usage:")
      .method<&Methods::use_resources>("useResources:count:usage:")
      .method<&Methods::type>("dispatchType")
      .method<&Methods::get_device>("device")
      .method<&Labelled::get_label>("label")
      .method<&Methods::rename>("setLabel:");
}

ComputeEncoder::ComputeEncoder(CommandBuffer* owner, bool concurrent)
    : Labelled(class_of<ComputeEncoder>()), command_buffer(owner) {
  owner->encoders.push_back(std::make_unique<RecordedEncoder>());
  record = owner->encoders.back().get();
  record->concurrent = concurrent;
  owner->open_encoder = this;
  count(SOFTWARE_METAL_ENCODERS);
}

ComputeEncoder::~ComputeEncoder() {
  if (ended) return;
  violation("%s deallocated without endEncoding", title().c_str());
  command_buffer->open_encoder = nullptr;
}

bool ComputeEncoder::is_open(const char* call) const {
  if (!ended) return true;
  violation("%s after endEncoding", call);
  return false;
}

void ComputeEncoder::end() {
  if (!debug_groups.empty())
    violation("endEncoding with %zu debug groups open", debug_groups.size());
  ended = true;
  command_buffer->open_encoder = nullptr;
  pipeline = nullptr;
  bindings = {};
}

// The dispatches that must run first: with a serial encoder the one before, else all that a
// barrier in between orders.
void ComputeEncoder::add_dispatch(Dispatch dispatch) {
  if (!command_buffer->retains) {
    for (Dispatch::Argument& argument : dispatch.buffers) {
      if (!argument.binding.buffer) continue;
      dispatch.unretained.emplace_back(*argument.binding.buffer);
      argument.binding.buffer = nullptr;
    }
  }
  auto& all = record->dispatches;
  auto position = static_cast<unsigned>(all.size());
  std::vector<unsigned> after;
  if (!record->concurrent) {
    if (position != 0) after.push_back(position - 1);
  } else {
    for (unsigned earlier = 0; earlier < position; ++earlier) {
      for (std::size_t b = 0; b < barriers.size(); ++b) {
        if (barrier_positions[b] <= earlier) continue;
        bool ordered = barriers[b].all || (shares_resource(all[earlier].dispatch, barriers[b]) &&
                                           shares_resource(dispatch, barriers[b]));
        if (!ordered) continue;
        after.push_back(earlier);
        break;
      }
    }
  }
  all.push_back({std::move(dispatch), std::move(after)});
}

void ComputeEncoder::add_barrier(Barrier barrier) {
  barriers.push_back(std::move(barrier));
  barrier_positions.push_back(static_cast<unsigned>(record->dispatches.size()));
  count(SOFTWARE_METAL_BARRIERS);
}

}  // namespace software_metal
