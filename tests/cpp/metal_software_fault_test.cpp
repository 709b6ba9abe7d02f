// Faults that only a software Metal device can be asked for: typed errors, later work unaffected.
#include <chrono>

#include "metal_support.h"
#include "tests/metal/software_metal.h"

namespace metal_sdpa::test {
namespace {

/// Puts the software device back when a test ends, however it ends.
struct FaultScope {
  FaultScope() { software_metal_reset(); }
  ~FaultScope() { software_metal_reset(); }
};

struct Rig {
  Rig() {
    library = backend->compile("test", kTestKernels);
    add = library->make_pipeline("add", {});
    x = float_buffer(*backend, 32, 1);
    software_metal_wait();  // faults are for what a test commits, not for the fence's first use
    stream_adding(0)->commit_and_wait();  // faults count command buffers from here
  }

  std::unique_ptr<CommandStream> stream_adding(float n) {
    std::unique_ptr<CommandStream> stream = backend->command_stream({});
    stream->dispatch(add_dispatch(add, x, x, n, 32));
    return stream;
  }

  FaultScope scope;
  std::shared_ptr<Backend> backend = own_metal_device();
  std::shared_ptr<Library> library;
  std::shared_ptr<Pipeline> add;
  Buffer x;
};

bool always_interrupt() { return true; }

}  // namespace

TEST_CASE("software metal: no device") {
  const FaultScope scope;
  software_metal_set_device_absent(1);
  std::string reason;
  CHECK(create_metal_backend(reason, "/nowhere") == nullptr);
  CHECK(reason.find("no Metal device") != std::string::npos);
  software_metal_set_device_absent(0);
  CHECK(create_metal_backend(reason, "/nowhere") != nullptr);
}

TEST_CASE("software metal: a failed allocation is BufferAllocationError, the next one works") {
  Rig rig;
  software_metal_fail_allocation(0);
  CHECK(error_of([&] { rig.backend->allocate(4096); }, "4096") == ErrorCode::buffer_allocation);
  CHECK(rig.backend->allocate(4096) != nullptr);
  rig.stream_adding(1)->commit_and_wait();
  CHECK(rig.x.host<float>()[0] == 2.0f);
}

TEST_CASE("software metal: the compiler's whole log is passed on") {
  Rig rig;
  const std::string log = "program_source:1:2: error: first\nprogram_source:9:9: error: last line";
  software_metal_fail_library(log.c_str());
  CHECK(error_of([&] { rig.backend->compile("mine", kTestKernels); }, log) ==
        ErrorCode::shader_compilation);
  CHECK(rig.backend->compile("mine", kTestKernels)->has_function("add"));
}

TEST_CASE("software metal: packaged kernels that do not compile, then do") {
  Rig rig;
  software_metal_fail_library("no kernels today");
  CHECK(error_of([&] { rig.backend->library_origin(); }, "no kernels today") ==
        ErrorCode::shader_compilation);
  CHECK(rig.backend->library_origin().rfind("embedded source", 0) == 0);
}

TEST_CASE("software metal: a function that is missing") {
  Rig rig;
  software_metal_hide_function("add");
  CHECK(error_of([&] { rig.library->make_pipeline("add", {}); }, "add") ==
        ErrorCode::shader_compilation);
  software_metal_hide_function(nullptr);
  CHECK(rig.library->make_pipeline("add", {}) != nullptr);
}

TEST_CASE("software metal: a pipeline that cannot be made") {
  Rig rig;
  software_metal_fail_pipeline("too many registers");
  CHECK(error_of([&] { rig.library->make_pipeline("add", {}); }, "too many registers") ==
        ErrorCode::shader_compilation);
  CHECK(rig.library->make_pipeline("add", {}) != nullptr);
}

TEST_CASE("software metal: a lost command buffer names itself, the error and the dispatch") {
  Rig rig;
  software_metal_fail_command_buffer(0, 3, "Caused GPU Hang Error");
  const auto stream = rig.stream_adding(1);
  stream->dispatch(add_dispatch(rig.add, rig.x, rig.x, 5, 32));
  stream->commit();
  const auto wait = [&] { stream->wait(); };
  CHECK(error_of(wait, "Caused GPU Hang Error") == ErrorCode::command_buffer);
  CHECK(error_of(wait, "command buffer \"metal_sdpa ") == ErrorCode::command_buffer);
  CHECK(error_of(wait, "code 3") == ErrorCode::command_buffer);
  CHECK(error_of(wait, "add") == ErrorCode::command_buffer);
  CHECK(rig.x.host<float>()[0] == 1.0f);
  rig.backend->synchronize();  // it was waited for: nothing left to tell
  rig.stream_adding(1)->commit_and_wait();
  CHECK(rig.x.host<float>()[0] == 2.0f);
}

TEST_CASE("software metal: an error that nobody waits for comes at synchronize, once") {
  Rig rig;
  software_metal_fail_command_buffer(1, 2, "Timed out");
  rig.stream_adding(1)->commit();
  rig.stream_adding(10)->commit();
  rig.stream_adding(100)->commit();
  CHECK(error_of([&] { rig.backend->synchronize(); }, "Timed out") == ErrorCode::command_buffer);
  rig.backend->synchronize();
  CHECK(rig.x.host<float>()[0] == 102.0f);
}

TEST_CASE("software metal: commit returns before the device is done") {
  Rig rig;
  software_metal_set_delay_us(300000);
  const auto stream = rig.stream_adding(1);
  const auto begin = std::chrono::steady_clock::now();
  stream->commit();
  const std::chrono::duration<double> committed = std::chrono::steady_clock::now() - begin;
  CHECK(committed.count() < 0.25);
  stream->wait();
  const std::chrono::duration<double> done = std::chrono::steady_clock::now() - begin;
  CHECK(done.count() >= 0.3);
  CHECK(rig.x.host<float>()[0] == 2.0f);
}

TEST_CASE("software metal: an interrupt is raised when nothing writes any more") {
  Rig rig;
  software_metal_set_delay_us(100000);
  set_interrupt_check(always_interrupt);
  const auto stream = rig.stream_adding(1);
  stream->commit();
  const auto wait = [&] { stream->wait(); };
  CHECK(error_of(wait, "interrupted") == ErrorCode::interrupted);
  set_interrupt_check(nullptr);
  CHECK(rig.x.host<float>()[0] == 2.0f);
  rig.backend->synchronize();
}

TEST_CASE("software metal: auto does not pick an emulated device") {
  CHECK(Device("auto").kind() == DeviceKind::cpu);
  CHECK(Device("metal").kind() == DeviceKind::metal);
}

}  // namespace metal_sdpa::test
