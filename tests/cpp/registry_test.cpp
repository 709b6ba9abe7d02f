// KernelRegistry: look-up, caching, replacement, ambiguity, threads.
#include <thread>

#include "metal_sdpa/kernel_registry.h"
#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

void first_kernel(const NativeLaunch& launch, WorkRange, StopToken&) {
  *launch.buffer<float>(0) = 1;
}
void second_kernel(const NativeLaunch& launch, WorkRange, StopToken&) {
  *launch.buffer<float>(0) = 2;
}

constexpr const char* kSource =
    "#include <metal_stdlib>\nusing namespace metal;\n"
    "kernel void only_msl(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {\n"
    "  x[i] += 1;\n}\n";

float run(const Device& device, const KernelRegistry& registry, const char* name) {
  const Buffer buffer = device.empty({1}, DType::f32);
  CommandEncoder encoder(device);
  encoder.encode_threadgroups(registry.get_pipeline(name), {{0, buffer}}, {1, 1, 1}, {1, 1, 1});
  encoder.commit_and_wait();
  return buffer.host<float>()[0];
}

}  // namespace

TEST_CASE("every registry has the attention kernels, and registering them again is harmless") {
  for (const std::string& kind : device_kinds()) {
    KernelRegistry registry{Device(kind)};
    for (const char* name : {"sdpa", "sdpa_f16", "sdpa_bf16", "sdpa_merge"}) {
      CHECK(pipeline_name(*registry.get_pipeline(name)) == name);
    }
    const auto before = registry.get_pipeline("sdpa");
    register_sdpa(registry);
    CHECK(pipeline_name(*registry.get_pipeline("sdpa")) == "sdpa");
    CHECK(pipeline_name(*before) == "sdpa");
  }
}

TEST_CASE("pipelines are cached by function, constants in any order, and library") {
  for (const std::string& kind : device_kinds()) {
    KernelRegistry registry{Device(kind)};
    const auto plain = registry.get_pipeline("sdpa");
    CHECK(registry.get_pipeline("sdpa") == plain);
    const std::size_t before = registry.cached_pipelines();
    const auto one = registry.get_pipeline("sdpa", {{0, true}, {1, true}});
    CHECK(one != plain);
    CHECK(registry.get_pipeline("sdpa", {{1, true}, {0, true}}) == one);
    CHECK(registry.get_pipeline("sdpa", {{0, true}, {1, false}}) != one);
    CHECK(registry.cached_pipelines() == before + 2);
    CHECK(error_of([&] { registry.get_pipeline("sdpa", {{1, true}, {1, false}}); }, "twice") ==
          ErrorCode::invalid_argument);
  }
}

TEST_CASE("a kernel that is nowhere is KernelNotFound, and says where it was looked for") {
  for (const std::string& kind : device_kinds()) {
    KernelRegistry registry{Device(kind)};
    CHECK(error_of([&] { registry.get_pipeline("no_such"); }, "no_such") ==
          ErrorCode::kernel_not_found);
    CHECK(error_of([&] { registry.get_pipeline("sdpa", {}, "nowhere"); }, "not registered") ==
          ErrorCode::kernel_not_found);
    CHECK(error_of([&] { registry.register_source("", "x"); }) == ErrorCode::invalid_argument);
    CHECK(error_of([&] { registry.register_source("x", ""); }) == ErrorCode::invalid_argument);
  }
}

TEST_CASE("a name that has MSL only is KernelNotFound on the cpu, and a native one heals it") {
  const Device device("cpu");
  KernelRegistry registry(device);
  registry.register_source("mine", kSource);
  CHECK(error_of([&] { registry.get_pipeline("only_msl"); }, "is MSL only") ==
        ErrorCode::kernel_not_found);
  CHECK(error_of([&] { registry.get_pipeline("only"); }, "in no library") ==
        ErrorCode::kernel_not_found);
  registry.register_native("only_msl", first_kernel);
  CHECK(run(device, registry, "only_msl") == 1);
}

TEST_CASE("registering again drops the pipelines made before") {
  const Device device("cpu");
  KernelRegistry registry(device);
  registry.register_native("mine", first_kernel);
  CHECK(run(device, registry, "mine") == 1);
  registry.register_native("mine", second_kernel);
  CHECK(run(device, registry, "mine") == 2);
  CHECK(error_of([&] { registry.register_native("mine", nullptr); }) ==
        ErrorCode::invalid_argument);
}

TEST_CASE("look-ups from many threads while others register") {
  const Device device("cpu");
  KernelRegistry registry(device);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&registry, t] {
      for (int i = 0; i < 200; ++i) {
        if (t == 0) {
          registry.register_native("mine", i % 2 == 0 ? first_kernel : second_kernel);
        } else {
          registry.get_pipeline("sdpa", {{static_cast<std::uint32_t>(i % 3), true}});
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(run(device, registry, "mine") == 2);
}
