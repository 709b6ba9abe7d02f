// KernelRegistry: look-up, caching, replacement, ambiguity, threads.
#include "core/registry.h"

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

/// A kernel of the caller's by the way that the device takes.
void register_mine(KernelRegistry& registry, const std::string& name) {
  if (registry.device().kind() == DeviceKind::cpu) {
    registry.register_native(name, first_kernel);
    return;
  }
  std::string source = kSource;
  source.replace(source.find("only_msl"), std::string("only_msl").size(), name);
  registry.register_source("library of " + name, source);
}

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
    for (const char* name : {"sdpa", "sdpa_f16", "sdpa_bf16"}) {
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
    register_mine(registry, "only_msl");
    const auto plain = registry.get_pipeline("only_msl");
    CHECK(registry.get_pipeline("only_msl") == plain);
    const std::size_t before = registry.cached_pipelines();
    const auto one = registry.get_pipeline("only_msl", {{0, true}, {1, true}});
    CHECK(one != plain);
    CHECK(registry.get_pipeline("only_msl", {{1, true}, {0, true}}) == one);
    CHECK(registry.get_pipeline("only_msl", {{0, true}, {1, false}}) != one);
    CHECK(registry.cached_pipelines() == before + 2);
    CHECK(error_of([&] { registry.get_pipeline("only_msl", {{1, true}, {1, false}}); }, "twice") ==
          ErrorCode::invalid_argument);
  }
}

TEST_CASE("kernels whose arguments are no contract are found by plans only") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    KernelRegistry registry(device);
    std::vector<std::string> internal{"sdpa_merge", "sdpa_merge_f16", "sdpa_merge_bf16"};
    for (const char* family : {"sdpa_decode", "sdpa_prefill"}) {
      for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
        SdpaProblem problem;
        problem.kernel = family;
        problem.dtype = dtype;
        problem.head_dim = problem.value_dim = 64;
        problem.set_packed_layouts();
        internal.push_back(plan_sdpa(device, problem).steps.front().kernel);
      }
    }
    for (const std::string& name : internal) {
      INFO(name);
      for (const char* library : {"", kOwnLibrary}) {
        CHECK(error_of([&] { registry.get_pipeline(name, {}, library); }, "is internal") ==
              ErrorCode::kernel_not_found);
      }
      CHECK(pipeline_name(*plan_pipeline(registry, name, {})) == name);
      // what a plan found is not given away either
      CHECK(error_of([&] { registry.get_pipeline(name, {}, kOwnLibrary); }, "is internal") ==
            ErrorCode::kernel_not_found);
    }
  }
}

TEST_CASE("a caller's kernel of an internal name is the caller's, and plans keep theirs") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    KernelRegistry registry(device);
    register_mine(registry, "sdpa_merge");
    register_mine(registry, "sdpa");
    const auto mine = registry.get_pipeline("sdpa_merge");
    CHECK(mine != plan_pipeline(registry, "sdpa_merge", {}));
    CHECK(error_of([&] { registry.get_pipeline("sdpa"); }, "name one of them") ==
          ErrorCode::invalid_argument);
    CHECK(registry.get_pipeline("sdpa", {}, kOwnLibrary) != nullptr);
    const Buffer x = device.empty({1, 1, 1, 8}, DType::f32);
    const Buffer out = device.empty({1, 1, 1, 8}, DType::f32);
    fill_bytes(out, 0xff);
    CommandEncoder encoder(device);
    SdpaProblem problem;
    problem.kernel = "sdpa";
    problem.head_dim = problem.value_dim = 8;
    problem.set_packed_layouts();
    encode_sdpa(encoder, registry, device, {x, x, x, out, {}}, problem);
    encoder.commit_and_wait();
    CHECK(bytes_of(out) == bytes_of(x));
  }
}

TEST_CASE("names of the library's own are not for sources") {
  for (const std::string& kind : device_kinds()) {
    KernelRegistry registry{Device(kind)};
    for (const char* name : {kOwnLibrary, "native"}) {
      CHECK(error_of([&] { registry.register_source(name, kSource); }, "own") ==
            ErrorCode::invalid_argument);
    }
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
  registry.register_native("mine", first_kernel);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&registry, t] {
      for (int i = 0; i < 200; ++i) {
        if (t == 0) {
          registry.register_native("mine", i % 2 == 0 ? first_kernel : second_kernel);
        } else {
          registry.get_pipeline("mine", {{static_cast<std::uint32_t>(i % 3), true}});
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(run(device, registry, "mine") == 2);
}
