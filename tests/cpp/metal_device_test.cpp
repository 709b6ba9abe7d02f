// The Metal device through the public interface: memory, wraps, pipelines, encoding.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>

#include "metal_support.h"

namespace metal_sdpa::test {
namespace {

KernelRegistry test_registry(const Device& device) {
  KernelRegistry registry(device);
  registry.register_source("test", kTestKernels);
  return registry;
}

Binding binding_of(std::uint32_t index, const Buffer& buffer) { return {index, buffer}; }

template <typename T>
Binding binding_of_value(std::uint32_t index, const T& value) {
  return {index, inline_bytes(value)};
}

Buffer filled(const Device& device, std::size_t count, float first) {
  const Buffer buffer = device.empty({static_cast<std::int64_t>(count)}, DType::f32);
  std::iota(buffer.host<float>(), buffer.host<float>() + count, first);
  return buffer;
}

/// Anonymous pages that unmap themselves; `ended` becomes true then.
HostMemory mapped_pages(std::size_t pages, bool* ended = nullptr) {
  const std::size_t byte_len = pages * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  void* data = ::mmap(nullptr, byte_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
  REQUIRE(data != MAP_FAILED);
  const auto unmap = [byte_len, ended](void* first) {
    ::munmap(first, byte_len);
    if (ended != nullptr) *ended = true;
  };
  return {data, byte_len, false, std::shared_ptr<void>(data, unmap)};
}

}  // namespace

TEST_CASE("metal device: name, limits, origin of the kernels") {
  const Device device("metal");
  CHECK(device.kind() == DeviceKind::metal);
  CHECK(!device.name().empty());
  CHECK(device.limits().max_head_dim == 576);
  CHECK(device.limits().max_threads_per_threadgroup >= 256);
  CHECK(device.limits().max_threadgroup_memory >= 32768);
  CHECK(device == Device("metal"));
  const std::string origin = device.backend()->library_origin();
  INFO(origin);
  CHECK((origin.rfind("metallib ", 0) == 0 || origin.rfind("embedded source", 0) == 0));
}

TEST_CASE("metal device: options of the CPU are refused") {
  CHECK(error_of([] { Device("metal", {2, ""}); }, "threads: 2") == ErrorCode::invalid_argument);
  CHECK(error_of([] { Device("metal", {0, "avx2"}); }, "avx2") == ErrorCode::invalid_argument);
}

TEST_CASE("metal device: new memory is zero and aligned") {
  const Device device("metal");
  for (const std::size_t byte_len : {1, 4, 129, 70001}) {
    Buffer buffer = device.alloc_buffer(byte_len, DType::u8, {static_cast<std::int64_t>(byte_len)});
    const std::vector<std::uint8_t> bytes = bytes_of(buffer);
    CHECK(std::count(bytes.begin(), bytes.end(), 0) == static_cast<std::ptrdiff_t>(byte_len));
    CHECK(buffer.address() % 128 == 0);
    fill_bytes(buffer, 0xff);  // so that memory used again shows
  }
}

TEST_CASE("metal device: wrapped pages are the same memory") {
  const Device device("metal");
  bool ended = false;
  {
    HostMemory memory = mapped_pages(2, &ended);
    auto* const host = static_cast<float*>(memory.data);
    const auto count = memory.byte_len / sizeof(float);
    const Buffer x = device.wrap(memory, DType::f32, {static_cast<std::int64_t>(count)});
    memory.owner.reset();
    CHECK(x.data() == host);
    std::fill(host, host + count, 1.5f);
    const KernelRegistry registry = test_registry(device);
    CommandEncoder encoder = device.command_encoder();
    const Buffer tail = x.slice_view((count - 32) * sizeof(float), 32);
    encoder.encode_threadgroups(
        registry.get_pipeline("add"),
        {binding_of(0, tail), binding_of(1, tail), binding_of_value(2, 2.0f)}, {1, 1, 1},
        {32, 1, 1});
    encoder.commit_and_wait();
    CHECK(host[count - 33] == 1.5f);
    CHECK(host[count - 32] == 3.5f);
    CHECK(host[count - 1] == 3.5f);
    CHECK(!ended);
  }
  CHECK(ended);
}

TEST_CASE("metal device: a wrap that is not whole pages says what it takes") {
  const Device device("metal");
  const HostMemory pages = mapped_pages(2);
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  HostMemory shifted = pages;
  shifted.data = static_cast<char*>(pages.data) + 64;
  shifted.byte_len = page;
  const auto wrap = [&](const HostMemory& memory) {
    device.wrap(memory, DType::u8, {static_cast<std::int64_t>(memory.byte_len)});
  };
  CHECK(error_of([&] { wrap(shifted); }, "64 bytes into a page") == ErrorCode::invalid_argument);
  HostMemory partial = pages;
  partial.byte_len = page + 128;
  CHECK(error_of([&] { wrap(partial); }, "whole pages of " + std::to_string(page)) ==
        ErrorCode::invalid_argument);
}

TEST_CASE("metal device: an existing MTLBuffer is wrapped from an offset") {
  const Device device("metal");
  const Buffer whole = filled(device, 64, 0);
  void* const handle = whole.storage()->native_handle();
  REQUIRE(handle != nullptr);
  const Buffer view =
      device.wrap_native(handle, 16 * sizeof(float), 32 * sizeof(float), DType::f32, {32}, nullptr);
  CHECK(view.address() == whole.address() + 64);
  CHECK(view.host<float>()[0] == 16.0f);
  const KernelRegistry registry = test_registry(device);
  CommandEncoder encoder = device.command_encoder();
  encoder.encode_threadgroups(registry.get_pipeline("add"),
                              {binding_of(0, view), binding_of(1, view), binding_of_value(2, 0.5f)},
                              {1, 1, 1}, {32, 1, 1});
  encoder.commit_and_wait();
  for (std::size_t i = 0; i < 64; ++i) {
    const float added = i >= 16 && i < 48 ? 0.5f : 0.0f;
    CHECK(whole.host<float>()[i] == static_cast<float>(i) + added);
  }
  CHECK(error_of([&] { device.wrap_native(handle, 128, 256, DType::f32, {64}, nullptr); },
                 "leave the allocation") == ErrorCode::invalid_argument);
}

TEST_CASE("metal device: bindings reach their indices, at their offsets") {
  const Device device("metal");
  const KernelRegistry registry = test_registry(device);
  const Buffer memory = filled(device, 256, 0);
  for (const std::size_t offset : {0, 1, 3, 16, 33}) {
    const Buffer x = memory.slice_view(offset * sizeof(float), 32);
    const Buffer y = memory.slice_view((offset + 100) * sizeof(float), 32);
    CommandEncoder encoder = device.command_encoder();
    encoder.encode_threadgroups(registry.get_pipeline("add"),
                                {binding_of(1, y), binding_of_value(2, 1000.0f), binding_of(0, x)},
                                {2, 1, 1}, {16, 1, 1});
    encoder.commit_and_wait();
    for (std::size_t i = 0; i < 32; ++i) {
      CHECK(y.host<float>()[i] == static_cast<float>(offset + i) + 1000.0f);
      CHECK(x.host<float>()[i] == static_cast<float>(offset + i));
    }
    std::iota(memory.host<float>(), memory.host<float>() + 256, 0.0f);
  }
}

TEST_CASE("metal device: every threadgroup and thread runs once, where it should") {
  const Device device("metal");
  const KernelRegistry registry = test_registry(device);
  const GridSize groups{2, 3, 4};
  const GridSize size{8, 2, 2};
  const std::size_t count = groups.count() * size.count();
  const Buffer y = device.empty({static_cast<std::int64_t>(count)}, DType::u32);
  CommandEncoder encoder = device.command_encoder();
  encoder.encode_threadgroups(registry.get_pipeline("place"), {binding_of(0, y)}, groups, size);
  encoder.commit_and_wait();
  for (std::uint32_t i = 0; i < count; ++i)
    CHECK(y.host<std::uint32_t>()[i] == i / 32 * 1000 + i % 32);
  CHECK(encoder.gpu_time_s() >= 0);
}

TEST_CASE("metal device: function constants of every type reach the function") {
  const Device device("metal");
  const KernelRegistry registry = test_registry(device);
  const Buffer y = device.empty({4}, DType::f32);
  for (const bool negative : {false, true}) {
    const FunctionConstants constants{
        {2, std::uint32_t{3}}, {0, negative}, {1, std::int32_t{-7}}, {3, 0.25f}};
    CommandEncoder encoder = device.command_encoder();
    encoder.encode_threadgroups(registry.get_pipeline("tagged", constants), {binding_of(0, y)},
                                {1, 1, 1}, {4, 1, 1});
    encoder.commit_and_wait();
    const float expected = 3000.0f - 7.0f + 0.25f;
    CHECK(y.host<float>()[3] == (negative ? -expected : expected));
  }
}

TEST_CASE("metal device: threadgroup memory as an argument") {
  const Device device("metal");
  const KernelRegistry registry = test_registry(device);
  const Buffer x = filled(device, 64, 5);
  const Buffer y = device.empty({64}, DType::f32);
  DispatchOptions options;
  options.threadgroup_memory = {{0, 64 * sizeof(float)}};
  CommandEncoder encoder = device.command_encoder();
  encoder.encode_threadgroups(registry.get_pipeline("reversed"),
                              {binding_of(0, x), binding_of(1, y)}, {1, 1, 1}, {64, 1, 1}, options);
  encoder.commit_and_wait();
  for (std::size_t i = 0; i < 64; ++i)
    CHECK(y.host<float>()[i] == 5.0f + static_cast<float>(63 - i));
}

TEST_CASE("metal device: too much threadgroup memory is refused, and nothing runs") {
  const Device device("metal");
  const KernelRegistry registry = test_registry(device);
  const Buffer x = filled(device, 64, 5);
  DispatchOptions options;
  options.threadgroup_memory = {{0, device.limits().max_threadgroup_memory + 16}};
  CommandEncoder encoder = device.command_encoder();
  const auto encode = [&] {
    encoder.encode_threadgroups(registry.get_pipeline("reversed"),
                                {binding_of(0, x), binding_of(1, x)}, {1, 1, 1}, {64, 1, 1},
                                options);
  };
  CHECK(error_of(encode, "threadgroup_memory") == ErrorCode::invalid_argument);
}

TEST_CASE("metal device: a source that does not compile gives the compiler's log") {
  const Device device("metal");
  KernelRegistry registry(device);
  registry.register_source("broken",
                           "kernel void broken(device float* x [[buffer(0)]]) { oops }\n");
  CHECK(error_of([&] { registry.get_pipeline("broken", {}, "broken"); }, "oops") ==
        ErrorCode::shader_compilation);
  registry.register_source("broken", kTestKernels);
  CHECK(registry.get_pipeline("add", {}, "broken") != nullptr);
}

TEST_CASE("metal device: a function that is not there, and kernels of the CPU") {
  const Device device("metal");
  KernelRegistry registry = test_registry(device);
  CHECK(error_of([&] { registry.get_pipeline("no_such_function"); }, "no_such_function") ==
        ErrorCode::kernel_not_found);
  const NativeKernel kernel = [](const NativeLaunch&, WorkRange, StopToken&) {};
  CHECK(error_of([&] { registry.register_native("mine", kernel); }, "metal") ==
        ErrorCode::unsupported);
}

TEST_CASE("metal device: an encoder is used once") {
  const Device device("metal");
  const KernelRegistry registry = test_registry(device);
  const Buffer x = filled(device, 32, 0);
  const auto pipeline = registry.get_pipeline("add");
  CommandEncoder encoder = device.command_encoder();
  const auto encode = [&] {
    encoder.encode_threadgroups(pipeline,
                                {binding_of(0, x), binding_of(1, x), binding_of_value(2, 1.0f)},
                                {1, 1, 1}, {32, 1, 1});
  };
  CHECK(error_of([&] { encoder.wait_until_completed(); }, "commit") == ErrorCode::invalid_argument);
  CHECK(error_of([&] { encoder.gpu_time_s(); }) == ErrorCode::invalid_argument);
  encode();
  encoder.commit();
  CHECK(error_of(encode, "committed") == ErrorCode::invalid_argument);
  CHECK(error_of([&] { encoder.commit(); }, "committed") == ErrorCode::invalid_argument);
  CHECK(error_of([&] { encoder.memory_barrier(); }) == ErrorCode::invalid_argument);
  encoder.wait_until_completed();
  encoder.wait_until_completed();
  CHECK(x.host<float>()[0] == 1.0f);
}

TEST_CASE("metal device: an encoder without dispatches commits") {
  const Device device("metal");
  CommandEncoder encoder = device.command_encoder();
  encoder.memory_barrier();
  encoder.commit_and_wait();
  CHECK(encoder.gpu_time_s() >= 0);
}

TEST_CASE("metal device: command buffers see what was committed before them") {
  const Device device("metal");
  const KernelRegistry registry = test_registry(device);
  const auto pipeline = registry.get_pipeline("chain");
  HostMemory memory = mapped_pages(1);
  // Two wraps of the same pages: Metal takes them for two buffers.
  const Buffer a = device.wrap(memory, DType::f32, {1024});
  const Buffer b = device.wrap(memory, DType::f32, {1024});
  std::fill(a.host<float>(), a.host<float>() + 64, 0.0f);
  std::vector<CommandEncoder> encoders;
  for (int i = 0; i < 12; ++i) {
    const Buffer& x = i % 2 == 0 ? a : b;
    encoders.push_back(device.command_encoder());
    encoders.back().encode_threadgroups(pipeline, {binding_of(0, x), binding_of(1, x)}, {2, 1, 1},
                                        {32, 1, 1});
  }
  for (CommandEncoder& encoder : encoders) encoder.commit();
  device.synchronize();
  for (std::size_t i = 0; i < 64; ++i) CHECK(a.host<float>()[i] == 4095.0f);  // 2^12 - 1
}

TEST_CASE("metal device: too many open encoders are refused, not waited for") {
  const Device device("metal");
  const KernelRegistry registry = test_registry(device);
  const Buffer x = filled(device, 32, 0);
  const auto pipeline = registry.get_pipeline("add");
  std::vector<CommandEncoder> encoders;
  const auto open_one = [&] {
    encoders.push_back(device.command_encoder());
    encoders.back().encode_threadgroups(
        pipeline, {binding_of(0, x), binding_of(1, x), binding_of_value(2, 1.0f)}, {1, 1, 1},
        {32, 1, 1});
  };
  for (int i = 0; i < 256; ++i) open_one();
  CHECK(error_of(open_one, "256 encoders") == ErrorCode::invalid_argument);
  encoders.pop_back();
  encoders.front().commit_and_wait();
  open_one();
  encoders.clear();
  CHECK(x.host<float>()[0] == 1.0f);
}

}  // namespace metal_sdpa::test
