// Command buffers: order, barriers between dispatches, completion, errors, lifetimes.
#include <atomic>
#include <chrono>
#include <thread>

#include "fixture.hpp"

using namespace tests;

namespace {

const char* const kSteps = R"(
kernel void add(device float* x [[buffer(0)]], constant float& by [[buffer(1)]],
                uint i [[thread_position_in_grid]]) {
  x[i] += by;
}
kernel void scale(device float* x [[buffer(0)]], constant float& by [[buffer(1)]],
                  uint i [[thread_position_in_grid]]) {
  x[i] *= by;
}
)";

struct Steps : Fixture {
  Steps() {
    Compiled compiled = compile(kSteps);
    add = pipeline(compiled.library.get(), "add");
    scale = pipeline(compiled.library.get(), "scale");
    x = buffer(32 * 4);
  }
  void encode(MTL::ComputeCommandEncoder* encoder, bool is_add, float by) {
    encoder->setComputePipelineState(is_add ? add.get() : scale.get());
    encoder->setBuffer(x.get(), 0, 0);
    encoder->setBytes(&by, sizeof(by), 1);
    encoder->dispatchThreadgroups({1, 1, 1}, {32, 1, 1});
  }
  float value() const { return data<float>(x)[0]; }
  NS::SharedPtr<MTL::ComputePipelineState> add, scale;
  NS::SharedPtr<MTL::Buffer> x;
};

// (0 + 3) * 2 where the order holds, 0 * 2 + 3 where it does not.
template <class Between>
float add_then_scale(Steps& steps, MTL::DispatchType type, Between between) {
  *Fixture::data<float>(steps.x) = 0;
  MTL::CommandBuffer* command_buffer = steps.queue->commandBuffer();
  MTL::ComputeCommandEncoder* encoder = command_buffer->computeCommandEncoder(type);
  steps.encode(encoder, true, 3);
  between(encoder);
  steps.encode(encoder, false, 2);
  encoder->endEncoding();
  command_buffer->commit();
  command_buffer->waitUntilCompleted();
  CHECK(command_buffer->status() == MTL::CommandBufferStatusCompleted);
  return steps.value();
}

}  // namespace

TEST_CASE("concurrent dispatches without a barrier come in any order") {
  Steps steps;
  int wrong = 0;
  for (unsigned seed = 0; seed < 10; ++seed) {
    software_metal_set_seed(seed);
    auto nothing = [](MTL::ComputeCommandEncoder*) {};
    wrong += add_then_scale(steps, MTL::DispatchTypeConcurrent, nothing) != 6.0f;
  }
  CHECK(wrong > 0);
  CHECK(wrong < 10);
}

TEST_CASE("a barrier, or a serial encoder, keeps dispatches in order") {
  Steps steps;
  for (unsigned seed = 0; seed < 10; ++seed) {
    software_metal_set_seed(seed);
    CHECK(add_then_scale(steps, MTL::DispatchTypeSerial, [](auto*) {}) == 6.0f);
    CHECK(add_then_scale(steps, MTL::DispatchTypeConcurrent, [](auto* encoder) {
            encoder->memoryBarrier(MTL::BarrierScopeBuffers);
          }) == 6.0f);
    CHECK(add_then_scale(steps, MTL::DispatchTypeConcurrent, [&](auto* encoder) {
            const MTL::Resource* resources[] = {steps.x.get()};
            encoder->memoryBarrier(resources, 1);
          }) == 6.0f);
  }
}

TEST_CASE("a barrier of other resources, or of textures, orders nothing here") {
  Steps steps;
  auto other = steps.buffer(16);
  int wrong = 0;
  for (unsigned seed = 0; seed < 10; ++seed) {
    software_metal_set_seed(seed);
    wrong += add_then_scale(steps, MTL::DispatchTypeConcurrent, [&](auto* encoder) {
               const MTL::Resource* resources[] = {other.get()};
               encoder->memoryBarrier(resources, 1);
               encoder->memoryBarrier(MTL::BarrierScopeTextures);
             }) != 6.0f;
  }
  CHECK(wrong > 0);
}

TEST_CASE("a dispatch waits for all dispatches before the barrier, not only for the last") {
  Steps steps;
  for (unsigned seed = 0; seed < 10; ++seed) {
    software_metal_set_seed(seed);
    CHECK(add_then_scale(steps, MTL::DispatchTypeConcurrent, [&](auto* encoder) {
            steps.encode(encoder, true, 1);
            steps.encode(encoder, true, 1);
            encoder->memoryBarrier(MTL::BarrierScopeBuffers);
          }) == 10.0f);
  }
}

TEST_CASE("command buffers of a queue run in the order of their commits") {
  Steps steps;
  MTL::CommandBuffer* last = nullptr;
  MTL::CommandBuffer* buffers[8];
  for (int i = 0; i < 8; ++i) {
    buffers[i] = steps.queue->commandBuffer();
    MTL::ComputeCommandEncoder* encoder = buffers[i]->computeCommandEncoder();
    steps.encode(encoder, i % 2 == 0, i % 2 == 0 ? 1 : 2);
    encoder->endEncoding();
  }
  for (MTL::CommandBuffer* buffer : buffers) (last = buffer)->commit();
  last->waitUntilCompleted();
  CHECK(steps.value() == 30.0f);
}

TEST_CASE("commit returns before the work is done, and the handler runs once after it") {
  Steps steps;
  software_metal_set_delay_us(50000);
  std::atomic<int> calls{0};
  std::atomic<int> status{-1};
  MTL::CommandBuffer* command_buffer = steps.queue->commandBuffer();
  MTL::ComputeCommandEncoder* encoder = command_buffer->computeCommandEncoder();
  steps.encode(encoder, true, 1);
  encoder->endEncoding();
  auto test_thread = std::this_thread::get_id();
  bool other_thread = false;
  command_buffer->addCompletedHandler([&](MTL::CommandBuffer* done) {
    status = static_cast<int>(done->status());
    other_thread = std::this_thread::get_id() != test_thread;
    ++calls;
  });
  command_buffer->commit();
  CHECK(steps.value() == 0.0f);
  CHECK(command_buffer->status() < MTL::CommandBufferStatusCompleted);
  CHECK(command_buffer->GPUEndTime() == 0.0);
  command_buffer->waitUntilCompleted();
  CHECK(steps.value() == 1.0f);
  CHECK(command_buffer->GPUEndTime() > command_buffer->GPUStartTime());
  software_metal_wait();
  CHECK(calls == 1);
  CHECK(status == MTL::CommandBufferStatusCompleted);
  CHECK(other_thread);
}

TEST_CASE("handlers are refused after commit") {
  Steps steps;
  MTL::CommandBuffer* command_buffer = steps.queue->commandBuffer();
  command_buffer->commit();
  command_buffer->addCompletedHandler([](MTL::CommandBuffer*) {});
  CHECK(Fixture::take_violations() == "addCompletedHandler after commit");
  command_buffer->waitUntilCompleted();
}

TEST_CASE("a command buffer ends in error with code and text; later ones are unaffected") {
  Steps steps;
  software_metal_fail_command_buffer(1, MTL::CommandBufferErrorTimeout, "Caused GPU Timeout Error");
  for (int i = 0; i < 3; ++i) {
    MTL::CommandBuffer* command_buffer = steps.queue->commandBuffer();
    MTL::ComputeCommandEncoder* encoder = command_buffer->computeCommandEncoder();
    steps.encode(encoder, true, 1);
    encoder->endEncoding();
    command_buffer->commit();
    command_buffer->waitUntilCompleted();
    if (i != 1) {
      CHECK(command_buffer->status() == MTL::CommandBufferStatusCompleted);
      CHECK(command_buffer->error() == nullptr);
      continue;
    }
    CHECK(command_buffer->status() == MTL::CommandBufferStatusError);
    CHECK(command_buffer->error()->code() == MTL::CommandBufferErrorTimeout);
    CHECK(text_of(command_buffer->error()) == "Caused GPU Timeout Error");
    CHECK(std::string(command_buffer->error()->domain()->utf8String()) ==
          "MTLCommandBufferErrorDomain");
  }
  CHECK(steps.value() == 2.0f);
}

TEST_CASE("a command buffer keeps what it uses until it is done") {
  Fixture fixture;
  software_metal_set_delay_us(20000);
  {
    auto state = fixture.pipeline(kSteps, "add");
    auto x = fixture.buffer(128);
    MTL::CommandBuffer* command_buffer = fixture.queue->commandBuffer();
    MTL::ComputeCommandEncoder* encoder = command_buffer->computeCommandEncoder();
    float by = 1;
    encoder->setComputePipelineState(state.get());
    encoder->setBuffer(x.get(), 0, 0);
    encoder->setBytes(&by, 4, 1);
    encoder->dispatchThreadgroups({1, 1, 1}, {32, 1, 1});
    encoder->endEncoding();
    command_buffer->commit();
  }
  CHECK(software_metal_live_objects("MTLBuffer") == 1);
  CHECK(software_metal_live_objects("MTLComputePipelineState") == 1);
  software_metal_wait();
  CHECK(software_metal_live_objects("MTLBuffer") == 0);
}

TEST_CASE("release in flight of a buffer that the command buffer does not retain is reported") {
  Fixture fixture;
  software_metal_set_delay_us(50000);
  auto state = fixture.pipeline(kSteps, "add");
  auto x = fixture.buffer(128);
  MTL::CommandBuffer* command_buffer = fixture.queue->commandBufferWithUnretainedReferences();
  MTL::ComputeCommandEncoder* encoder = command_buffer->computeCommandEncoder();
  float by = 1;
  encoder->setComputePipelineState(state.get());
  encoder->setBuffer(x.get(), 0, 0);
  encoder->setBytes(&by, 4, 1);
  encoder->dispatchThreadgroups({1, 1, 1}, {32, 1, 1});
  encoder->endEncoding();
  command_buffer->commit();
  x.reset();
  CHECK_CONTAINS(Fixture::take_violations(), "deallocated while a command buffer");
  command_buffer->waitUntilCompleted();
}

TEST_CASE("an uncommitted command buffer is discarded") {
  Steps steps;
  auto* pool = NS::AutoreleasePool::alloc()->init();
  MTL::CommandBuffer* command_buffer = steps.queue->commandBuffer();
  MTL::ComputeCommandEncoder* encoder = command_buffer->computeCommandEncoder();
  steps.encode(encoder, true, 1);
  encoder->endEncoding();
  pool->release();
  CHECK(software_metal_live_objects("MTLCommandBuffer") == 0);
  CHECK(steps.value() == 0.0f);
}

TEST_CASE("a queue has 64 command buffers; the next would wait forever") {
  Fixture fixture;
  for (int i = 0; i < 64; ++i) fixture.queue->commandBuffer();
  CHECK(Fixture::take_violations() == "");
  fixture.queue->commandBuffer();
  CHECK_CONTAINS(Fixture::take_violations(), "64 command buffers of the queue are not committed");
}

TEST_CASE("more than 64 committed command buffers only wait") {
  Steps steps;
  for (int i = 0; i < 200; ++i) {
    auto* pool = NS::AutoreleasePool::alloc()->init();
    MTL::CommandBuffer* command_buffer = steps.queue->commandBuffer();
    MTL::ComputeCommandEncoder* encoder = command_buffer->computeCommandEncoder();
    steps.encode(encoder, true, 1);
    encoder->endEncoding();
    command_buffer->commit();
    pool->release();
  }
  software_metal_wait();
  CHECK(steps.value() == 200.0f);
}

TEST_CASE("two queues and several threads at once") {
  Steps steps;
  auto second = NS::TransferPtr(steps.device->newCommandQueue());
  auto y = steps.buffer(128);
  auto work = [&](MTL::CommandQueue* queue, MTL::Buffer* target) {
    for (int i = 0; i < 50; ++i) {
      auto pool = NS::TransferPtr(NS::AutoreleasePool::alloc()->init());
      MTL::CommandBuffer* command_buffer = queue->commandBuffer();
      MTL::ComputeCommandEncoder* encoder = command_buffer->computeCommandEncoder();
      float by = 1;
      encoder->setComputePipelineState(steps.add.get());
      encoder->setBuffer(target, 0, 0);
      encoder->setBytes(&by, sizeof(by), 1);
      encoder->dispatchThreadgroups({1, 1, 1}, {32, 1, 1});
      encoder->endEncoding();
      command_buffer->commit();
      if (i % 10 == 9) command_buffer->waitUntilCompleted();
    }
  };
  std::thread a(work, steps.queue.get(), steps.x.get());
  std::thread b(work, second.get(), y.get());
  a.join();
  b.join();
  software_metal_wait();
  CHECK(steps.value() == 50.0f);
  CHECK(Fixture::data<float>(y)[31] == 50.0f);
}

TEST_CASE("counts of what ran") {
  Steps steps;
  software_metal_reset_counts();
  add_then_scale(steps, MTL::DispatchTypeConcurrent,
                 [](auto* encoder) { encoder->memoryBarrier(MTL::BarrierScopeBuffers); });
  CHECK(software_metal_count(SOFTWARE_METAL_DISPATCHES) == 2);
  CHECK(software_metal_count(SOFTWARE_METAL_THREADGROUPS) == 2);
  CHECK(software_metal_count(SOFTWARE_METAL_BARRIERS) == 1);
  CHECK(software_metal_count(SOFTWARE_METAL_COMMAND_BUFFERS) == 1);
  CHECK(software_metal_count(SOFTWARE_METAL_ENCODERS) == 1);
}

TEST_CASE("residency sets hold allocations") {
  Fixture fixture;
  auto descriptor = NS::TransferPtr(MTL::ResidencySetDescriptor::alloc()->init());
  descriptor->setInitialCapacity(4);
  NS::Error* error = nullptr;
  auto set = NS::TransferPtr(fixture.device->newResidencySet(descriptor.get(), &error));
  REQUIRE(set);
  auto buffer = fixture.buffer(64);
  set->addAllocation(buffer.get());
  set->addAllocation(buffer.get());
  set->commit();
  set->requestResidency();
  CHECK(set->allocationCount() == 1);
  CHECK(set->containsAllocation(buffer.get()));
  fixture.queue->addResidencySet(set.get());
  CHECK(set->retainCount() == 2);
  fixture.queue->removeResidencySet(set.get());
  set->removeAllAllocations();
  CHECK(set->allocationCount() == 0);
}
