// Who keeps what alive, counted: every object that a device made is gone when the device is.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "metal_support.h"
#include "tests/metal/software_metal.h"

namespace metal_sdpa::test {
namespace {

constexpr const char* kCountedClasses[] = {
    "MTLBuffer",  "MTLCommandBuffer",        "MTLComputeCommandEncoder",
    "MTLLibrary", "MTLComputePipelineState", "MTLCommandQueue",
    "MTLFence"};

/// Objects alive of every counted class; the device of the process has some of its own.
std::vector<long> live_counts() {
  std::vector<long> counts;
  for (const char* name : kCountedClasses) counts.push_back(software_metal_live_objects(name));
  return counts;
}

struct Rig {
  Rig() {
    library = backend->compile("test", kTestKernels);
    add = library->make_pipeline("add", {});
    x = float_buffer(*backend, 32, 1);
    software_metal_wait();  // faults are for what a test commits, not for the fence's first use
  }

  std::unique_ptr<CommandStream> stream_adding(float n) {
    std::unique_ptr<CommandStream> stream = backend->command_stream({});
    stream->dispatch(add_dispatch(add, x, x, n, 32));
    return stream;
  }

  std::shared_ptr<Backend> backend = own_metal_device();
  std::shared_ptr<Library> library;
  std::shared_ptr<Pipeline> add;
  Buffer x;
};

/// Runs `body` and requires that nothing it made is left, and that nothing was done wrong.
template <typename Body>
void expect_no_leak(const Body& body) {
  software_metal_reset();
  const std::vector<long> before = live_counts();
  body();
  software_metal_reset();  // waits for the completion queue
  INFO(software_metal_live_report());
  CHECK(live_counts() == before);
  CHECK(software_metal_violation_count() == 0);
}

}  // namespace

TEST_CASE("software metal: a device takes everything with it") {
  expect_no_leak([] {
    Rig rig;
    rig.stream_adding(1)->commit_and_wait();
    CHECK(rig.x.host<float>()[0] == 2.0f);
    CHECK(rig.backend->library_origin().rfind("embedded source", 0) == 0);
  });
}

TEST_CASE(
    "software metal: an encoder that is dropped uncommitted leaves nothing and runs nothing") {
  expect_no_leak([] {
    Rig rig;
    {
      const auto stream = rig.stream_adding(1);
    }
    rig.backend->synchronize();
    CHECK(rig.x.host<float>()[0] == 1.0f);
  });
}

TEST_CASE("software metal: memory and pipelines live until the device is done with them") {
  expect_no_leak([] {
    Rig rig;
    software_metal_set_delay_us(100000);
    const long buffers = software_metal_live_objects("MTLBuffer");
    Buffer result = float_buffer(*rig.backend, 32);
    {
      const auto pipeline = rig.library->make_pipeline("chain", {});
      const Buffer input = float_buffer(*rig.backend, 32, 3);
      const auto stream = rig.backend->command_stream({});
      Dispatch dispatch;
      dispatch.pipeline = pipeline;
      dispatch.bindings = {bound(0, input), bound(1, result)};
      dispatch.threadgroup_size = {32, 1, 1};
      stream->dispatch(dispatch);
      stream->commit();
    }
    rig.library.reset();
    rig.add.reset();
    rig.backend->synchronize();
    CHECK(result.host<float>()[0] == 7.0f);
    CHECK(software_metal_live_objects("MTLBuffer") == buffers + 1);  // the input is gone
  });
}

TEST_CASE("software metal: wrapped memory is let go after its buffer, and not before") {
  expect_no_leak([] {
    Rig rig;
    const std::size_t page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    void* pages = ::mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    REQUIRE(pages != MAP_FAILED);
    std::atomic<long> buffers_at_end{-1};
    std::atomic<float> result{0};
    const long buffers_before = software_metal_live_objects("MTLBuffer");
    std::shared_ptr<void> owner(pages, [&](void* first) {
      result = static_cast<float*>(first)[0];
      buffers_at_end = software_metal_live_objects("MTLBuffer");
      ::munmap(first, page);
    });
    software_metal_set_delay_us(50000);
    {
      auto storage = rig.backend->wrap_host({pages, page, false, std::move(owner)});
      const Buffer y(storage, 0, 128, DType::f32, {32});
      storage.reset();
      const auto stream = rig.backend->command_stream({});
      stream->dispatch(add_dispatch(rig.add, rig.x, y, 10, 32));
      stream->commit();
    }
    CHECK(buffers_at_end == -1);
    rig.backend->synchronize();
    software_metal_reset();
    CHECK(result == 11.0f);
    CHECK(buffers_at_end >= 0);
    CHECK(buffers_at_end <= buffers_before + 1);
  });
}

TEST_CASE("software metal: a wrapped MTLBuffer is retained, and given back once") {
  expect_no_leak([] {
    Rig rig;
    auto owned = rig.backend->allocate(256);
    auto owner = std::make_shared<int>(1);
    const std::weak_ptr<int> watch = owner;
    auto wrapped = rig.backend->wrap_native(owned->native_handle(), std::move(owner));
    const long buffers = software_metal_live_objects("MTLBuffer");
    owned.reset();
    CHECK(software_metal_live_objects("MTLBuffer") == buffers);  // the wrap keeps it
    const Buffer y(wrapped, 128, 128, DType::f32, {32});
    const auto stream = rig.backend->command_stream({});
    stream->dispatch(add_dispatch(rig.add, rig.x, y, 1, 32));
    stream->commit_and_wait();
    CHECK(y.host<float>()[31] == 33.0f);
    CHECK(!watch.expired());
  });
}

TEST_CASE("software metal: failed calls leak nothing") {
  expect_no_leak([] {
    Rig rig;
    software_metal_fail_allocation(0);
    CHECK(error_of([&] { rig.backend->allocate(64); }) == ErrorCode::buffer_allocation);
    software_metal_fail_library("broken");
    CHECK(error_of([&] { rig.backend->compile("b", "x"); }) == ErrorCode::shader_compilation);
    software_metal_fail_pipeline("broken");
    CHECK(error_of([&] { rig.library->make_pipeline("add", {}); }) ==
          ErrorCode::shader_compilation);
    software_metal_fail_command_buffer(0, 1, "lost");
    const auto stream = rig.stream_adding(1);
    stream->commit();
    CHECK(error_of([&] { stream->wait(); }, "lost") == ErrorCode::command_buffer);
  });
}

TEST_CASE("software metal: many threads encode and allocate at once") {
  expect_no_leak([] {
    Rig rig;
    std::atomic<int> wrong{0};
    const auto work = [&rig, &wrong](float n) {
      for (int round = 0; round < 8; ++round) {
        const Buffer x = float_buffer(*rig.backend, 32, n);
        const auto stream = rig.backend->command_stream({});
        stream->dispatch(add_dispatch(rig.add, x, x, 1, 32));
        stream->commit_and_wait();
        if (x.host<float>()[31] != n + 32) ++wrong;
      }
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) threads.emplace_back(work, static_cast<float>(100 * i));
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
  });
}

TEST_CASE("software metal: after fork every call raises and nothing is touched") {
  Rig rig;
  auto open_stream = rig.stream_adding(1);
  rig.stream_adding(1)->commit();
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    int failures = 0;
    const auto expect_unsupported = [&failures](const std::function<void()>& call) {
      try {
        call();
        ++failures;
      } catch (const Error& error) {
        if (error.code() != ErrorCode::unsupported) ++failures;
        if (std::string(error.what()).find("fork()") == std::string::npos) ++failures;
      }
    };
    expect_unsupported([&] { rig.backend->allocate(64); });
    expect_unsupported([&] { rig.backend->command_stream({}); });
    expect_unsupported([&] { open_stream->commit(); });
    expect_unsupported([&] { open_stream->dispatch(add_dispatch(rig.add, rig.x, rig.x, 1, 32)); });
    expect_unsupported([&] { rig.backend->synchronize(); });
    expect_unsupported([&] { rig.backend->compile("t", kTestKernels); });
    expect_unsupported([&] { rig.library->make_pipeline("add", {}); });
    expect_unsupported([&] { rig.backend->library_origin(); });
    std::string reason;
    if (metal_backend(reason) != nullptr || reason.find("fork()") == std::string::npos) ++failures;
    rig.backend->shutdown();
    open_stream.reset();
    rig.x = Buffer();
    rig.add.reset();
    rig.library.reset();
    rig.backend.reset();
    ::_exit(failures);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  rig.backend->synchronize();
  CHECK(rig.x.host<float>()[0] == 2.0f);
}

}  // namespace metal_sdpa::test
