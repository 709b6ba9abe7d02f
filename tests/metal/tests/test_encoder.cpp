// Every rule of the validation layer: the use that breaks it is reported, its neighbour is not.
#include "fixture.hpp"

using namespace tests;

namespace {

const char* const kCopy = R"(
struct Pair { uint first; uint second; };
kernel void copy(device const float* from [[buffer(0)]], device float* to [[buffer(1)]],
                 constant Pair& pair [[buffer(2)]], uint i [[thread_position_in_grid]]) {
  to[i] = from[i] + pair.first;
}
kernel void copy_half(device const half* from [[buffer(0)]], device half* to [[buffer(1)]],
                      uint i [[thread_position_in_grid]]) {
  to[i] = from[i];
}
kernel void shared(device float* to [[buffer(0)]], threadgroup float* tile [[threadgroup(0)]],
                   uint i [[thread_position_in_grid]]) {
  tile[i] = i;
  to[i] = tile[i];
}
[[max_total_threads_per_threadgroup(64)]] kernel void small(device float* to [[buffer(0)]],
                                                            uint i [[thread_position_in_grid]]) {
  to[i] = i;
}
)";

// An open encoder with everything bound that `copy` needs.
struct Encoding : Fixture {
  Encoding() {
    state = pipeline(kCopy, "copy");
    from = buffer(256);
    to = buffer(256);
    command_buffer = queue->commandBuffer();
    encoder = command_buffer->computeCommandEncoder(MTL::DispatchTypeConcurrent);
    std::uint32_t pair[2] = {1, 2};
    encoder->setComputePipelineState(state.get());
    encoder->setBuffer(from.get(), 0, 0);
    encoder->setBuffer(to.get(), 0, 1);
    encoder->setBytes(pair, sizeof(pair), 2);
  }
  ~Encoding() {
    if (!ended) encoder->endEncoding();
  }
  void dispatch(MTL::Size groups = {1, 1, 1}, MTL::Size size = {32, 1, 1}) {
    encoder->dispatchThreadgroups(groups, size);
  }
  void use(const char* name) {
    state = pipeline(kCopy, name);
    encoder->setComputePipelineState(state.get());
  }
  void end() {
    encoder->endEncoding();
    ended = true;
  }

  NS::SharedPtr<MTL::ComputePipelineState> state;
  NS::SharedPtr<MTL::Buffer> from, to;
  MTL::CommandBuffer* command_buffer;
  MTL::ComputeCommandEncoder* encoder;
  bool ended = false;
};

}  // namespace

TEST_CASE("a legal dispatch is not reported") {
  Encoding encoding;
  encoding.dispatch();
  encoding.end();
  encoding.command_buffer->commit();
  encoding.command_buffer->waitUntilCompleted();
  CHECK(encoding.command_buffer->status() == MTL::CommandBufferStatusCompleted);
  CHECK(Fixture::data<float>(encoding.to)[31] == 1.0f);
}

TEST_CASE("an unbound buffer is reported by name") {
  Encoding encoding;
  encoding.encoder->setBuffer(nullptr, 0, 1);
  encoding.dispatch();
  CHECK(Fixture::take_violations() ==
        "dispatchThreadgroups: copy: buffer 'to' at index 1 is not bound");
}

TEST_CASE("a buffer at the wrong index leaves the right one unbound") {
  Encoding encoding;
  encoding.encoder->setBuffer(nullptr, 0, 1);
  encoding.encoder->setBuffer(encoding.to.get(), 0, 3);
  encoding.dispatch();
  CHECK_CONTAINS(Fixture::take_violations(), "'to' at index 1 is not bound");
}

TEST_CASE("an offset past the end") {
  Encoding encoding;
  encoding.encoder->setBuffer(encoding.to.get(), 256, 1);
  CHECK_CONTAINS(Fixture::take_violations(), "offset 256 is past the end");
  encoding.encoder->setBufferOffset(1000, 1);
  CHECK_CONTAINS(Fixture::take_violations(), "setBufferOffset: offset 1000 is past the end");
  encoding.encoder->setBuffer(encoding.to.get(), 252, 1);
  encoding.encoder->setBufferOffset(128, 1);
  encoding.dispatch();
}

TEST_CASE("a misaligned offset") {
  Encoding encoding;
  encoding.encoder->setBuffer(encoding.to.get(), 6, 1);
  encoding.dispatch();
  CHECK_CONTAINS(Fixture::take_violations(), "offset 6 is not a multiple of 4");
  encoding.use("copy_half");
  encoding.dispatch();
  CHECK(Fixture::take_violations() == "");
  encoding.encoder->setBufferOffset(7, 1);
  encoding.dispatch();
  CHECK_CONTAINS(Fixture::take_violations(), "offset 7 is not a multiple of 2");
}

TEST_CASE("fewer bytes than the struct that the function reads") {
  Encoding encoding;
  std::uint32_t first = 1;
  encoding.encoder->setBytes(&first, sizeof(first), 2);
  encoding.dispatch();
  CHECK_CONTAINS(Fixture::take_violations(), "4 bytes are bound, but the function reads 8");
  encoding.encoder->setBuffer(encoding.from.get(), 252, 2);
  encoding.dispatch();
  CHECK_CONTAINS(Fixture::take_violations(), "4 bytes are bound, but the function reads 8");
}

TEST_CASE("setBytes takes 1 to 4096 bytes") {
  Encoding encoding;
  std::vector<char> bytes(4097);
  encoding.encoder->setBytes(bytes.data(), 4096, 2);
  CHECK(Fixture::take_violations() == "");
  encoding.encoder->setBytes(bytes.data(), 4097, 2);
  CHECK_CONTAINS(Fixture::take_violations(), "4097 bytes at index 2");
  encoding.encoder->setBytes(bytes.data(), 0, 2);
  CHECK_CONTAINS(Fixture::take_violations(), "no bytes at index 2");
}

TEST_CASE("buffer and threadgroup indices end at 30") {
  Encoding encoding;
  encoding.encoder->setBuffer(encoding.from.get(), 0, 30);
  encoding.encoder->setThreadgroupMemoryLength(16, 30);
  CHECK(Fixture::take_violations() == "");
  encoding.encoder->setBuffer(encoding.from.get(), 0, 31);
  CHECK_CONTAINS(Fixture::take_violations(), "setBuffer: index 31");
  encoding.encoder->setThreadgroupMemoryLength(16, 31);
  CHECK_CONTAINS(Fixture::take_violations(), "setThreadgroupMemoryLength: index 31");
}

TEST_CASE("zero and oversized threadgroups and grids") {
  Encoding encoding;
  encoding.dispatch({1, 1, 1}, {0, 1, 1});
  CHECK_CONTAINS(Fixture::take_violations(), "threadsPerThreadgroup (0, 1, 1) has a zero");
  encoding.dispatch({0, 1, 1}, {32, 1, 1});
  CHECK_CONTAINS(Fixture::take_violations(), "grid (0, 1, 1) has a zero");
  encoding.dispatch({1, 1, 1}, {1025, 1, 1});
  CHECK_CONTAINS(Fixture::take_violations(), "has 1025 threads, but the pipeline takes 1024");
  encoding.dispatch({1, 1, 1}, {32, 32, 2});
  CHECK_CONTAINS(Fixture::take_violations(), "has 2048 threads");
  encoding.dispatch({1, 1, 1}, {1ul << 32, 1ul << 32, 1});
  CHECK_CONTAINS(Fixture::take_violations(), "but the pipeline takes 1024");
  encoding.encoder->dispatchThreads({32, 1, 1}, {0, 1, 1});
  CHECK_CONTAINS(Fixture::take_violations(), "has a zero");
}

TEST_CASE("max_total_threads_per_threadgroup bounds the pipeline") {
  Encoding encoding;
  encoding.use("small");
  CHECK(encoding.state->maxTotalThreadsPerThreadgroup() == 64);
  encoding.dispatch({1, 1, 1}, {65, 1, 1});
  CHECK_CONTAINS(Fixture::take_violations(), "has 65 threads, but the pipeline takes 64");
  encoding.dispatch({1, 1, 1}, {64, 1, 1});
}

TEST_CASE("threadgroup memory: length missing, not a multiple of 16, over 32 KB") {
  Encoding encoding;
  encoding.use("shared");
  encoding.dispatch();
  CHECK_CONTAINS(Fixture::take_violations(), "threadgroup memory 'tile' at index 0 has no length");
  encoding.encoder->setThreadgroupMemoryLength(100, 0);
  CHECK_CONTAINS(Fixture::take_violations(), "100 at index 0 is not a multiple of 16");
  encoding.encoder->setThreadgroupMemoryLength(32784, 0);
  CHECK_CONTAINS(Fixture::take_violations(), "32784 bytes at index 0, but the device has 32768");
  encoding.encoder->setThreadgroupMemoryLength(32768, 0);
  encoding.dispatch();
  CHECK(Fixture::take_violations() == "");
  encoding.encoder->setThreadgroupMemoryLength(16, 1);
  encoding.dispatch();
  CHECK_CONTAINS(Fixture::take_violations(), "32784 bytes of threadgroup memory");
}

TEST_CASE("a dispatch without a pipeline") {
  Fixture fixture;
  MTL::ComputeCommandEncoder* encoder = fixture.queue->commandBuffer()->computeCommandEncoder();
  encoder->dispatchThreadgroups({1, 1, 1}, {32, 1, 1});
  CHECK_CONTAINS(Fixture::take_violations(), "no compute pipeline state is set");
  encoder->setComputePipelineState(nullptr);
  CHECK_CONTAINS(Fixture::take_violations(), "pipeline is nil");
  encoder->endEncoding();
}

TEST_CASE("encoding after endEncoding") {
  Encoding encoding;
  encoding.end();
  encoding.dispatch();
  CHECK(Fixture::take_violations() == "dispatchThreadgroups after endEncoding");
  encoding.encoder->setBuffer(encoding.from.get(), 0, 0);
  CHECK(Fixture::take_violations() == "setBuffer after endEncoding");
  encoding.encoder->memoryBarrier(MTL::BarrierScopeBuffers);
  CHECK(Fixture::take_violations() == "memoryBarrierWithScope after endEncoding");
  encoding.encoder->endEncoding();
  CHECK(Fixture::take_violations() == "endEncoding after endEncoding");
}

TEST_CASE("an encoder dropped without endEncoding") {
  Fixture fixture;
  auto* pool = NS::AutoreleasePool::alloc()->init();
  fixture.queue->commandBuffer()->computeCommandEncoder();
  pool->release();
  CHECK_CONTAINS(Fixture::take_violations(), "deallocated without endEncoding");
}

TEST_CASE("commit: twice, with an open encoder, encoding after it") {
  Encoding encoding;
  encoding.command_buffer->commit();
  CHECK(Fixture::take_violations() == "commit with an encoder that is not ended");
  encoding.end();
  encoding.command_buffer->commit();
  encoding.command_buffer->commit();
  CHECK(Fixture::take_violations() == "commit of a command buffer that is committed already");
  CHECK(encoding.command_buffer->computeCommandEncoder() == nullptr);
  CHECK(Fixture::take_violations() == "computeCommandEncoder after commit");
  encoding.command_buffer->waitUntilCompleted();
}

TEST_CASE("two encoders open at once") {
  Encoding encoding;
  CHECK(encoding.command_buffer->computeCommandEncoder() == nullptr);
  CHECK(Fixture::take_violations() == "computeCommandEncoder while another encoder is open");
}

TEST_CASE("waiting before commit") {
  Encoding encoding;
  encoding.command_buffer->waitUntilCompleted();
  CHECK_CONTAINS(Fixture::take_violations(), "waitUntilCompleted before commit");
}

TEST_CASE("debug groups must balance") {
  Encoding encoding;
  encoding.encoder->popDebugGroup();
  CHECK(Fixture::take_violations() == "popDebugGroup without pushDebugGroup");
  encoding.encoder->pushDebugGroup(str("layer"));
  encoding.end();
  CHECK(Fixture::take_violations() == "endEncoding with 1 debug groups open");
}

TEST_CASE("a pipeline that promises whole simdgroups gets them") {
  Encoding encoding;
  Compiled compiled = encoding.compile(kCopy);
  auto function = NS::TransferPtr(compiled.library->newFunction(str("small")));
  auto descriptor = NS::TransferPtr(MTL::ComputePipelineDescriptor::alloc()->init());
  descriptor->setComputeFunction(function.get());
  descriptor->setLabel(str("a pipeline"));
  descriptor->setMaxTotalThreadsPerThreadgroup(96);
  descriptor->setThreadGroupSizeIsMultipleOfThreadExecutionWidth(true);
  NS::Error* error = nullptr;
  auto state = NS::TransferPtr(encoding.device->newComputePipelineState(
      descriptor.get(), MTL::PipelineOptionNone, nullptr, &error));
  REQUIRE(state);
  CHECK(state->maxTotalThreadsPerThreadgroup() == 96);
  CHECK(state->threadExecutionWidth() == 32);
  CHECK(std::string(state->label()->utf8String()) == "a pipeline");
  encoding.encoder->setComputePipelineState(state.get());
  encoding.dispatch({1, 1, 1}, {48, 1, 1});
  CHECK_CONTAINS(Fixture::take_violations(), "is not a multiple of 32");
  encoding.dispatch({1, 1, 1}, {96, 1, 1});
}
