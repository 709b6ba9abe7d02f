// Buffers: extents, slices, aliasing of views, what is refused.
#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

TEST_CASE("a new buffer is zero-filled and aligned") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    // Over the size from which memory comes from the system in pages, too.
    for (const std::int64_t count : {1, 3, 1000, 2000000}) {
      const Buffer buffer = device.empty({count}, DType::f32);
      CHECK(reinterpret_cast<std::uintptr_t>(buffer.data()) % 128 == 0);
      bool zero = true;
      for (std::int64_t i = 0; i < count; ++i) zero = zero && buffer.host<float>()[i] == 0;
      CHECK(zero);
    }
  }
}

TEST_CASE("a slice of a slice adds offsets and keeps its own extent") {
  const Device device("cpu");
  const Buffer buffer = device.empty({4, 8}, DType::u16);
  for (std::uint16_t i = 0; i < 32; ++i) buffer.host<std::uint16_t>()[i] = i;
  const Buffer slice = buffer.slice_view(6, 20);
  const Buffer inner = slice.slice_view(10, 4);
  CHECK(inner.byte_offset() == 16);
  CHECK(inner.byte_len() == 8);
  CHECK(inner.shape() == Shape{4});
  CHECK(inner.host<std::uint16_t>()[0] == 8);
  CHECK(error_of([&] { slice.slice_view(10, 16); }, "leave the view of 40 bytes") ==
        ErrorCode::invalid_argument);
  CHECK(error_of([&] { slice.slice_view(SIZE_MAX - 1, 2); }) == ErrorCode::invalid_argument);
  CHECK(error_of([&] { slice.slice_view(0, SIZE_MAX / 2 + 2); }) == ErrorCode::invalid_argument);
  CHECK(error_of([&] { slice.slice_view(3, 1); }, "multiple of the 2 bytes") ==
        ErrorCode::invalid_argument);
  CHECK(error_of([&] { slice.slice_view(0, 0); }, "at least 1") == ErrorCode::invalid_argument);
}

TEST_CASE("memory outlives the first handle") {
  Buffer slice;
  {
    const Buffer buffer = Device("cpu").empty({16}, DType::f32);
    buffer.host<float>()[5] = 3;
    slice = buffer.slice_view(20, 1);
  }
  CHECK(slice.host<float>()[0] == 3);
}

TEST_CASE("allocation refuses what it cannot give") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    CHECK(error_of([&] { device.empty({0, 4}, DType::f32); }) == ErrorCode::invalid_argument);
    CHECK(error_of([&] { device.empty({-1}, DType::f32); }) == ErrorCode::invalid_argument);
    CHECK(error_of([&] { device.alloc_buffer(8, DType::f32, {3}); }, "is 12 bytes") ==
          ErrorCode::invalid_argument);
    CHECK(error_of([&] { device.alloc_buffer(0, DType::f32, {}); }) == ErrorCode::invalid_argument);
    // More than a process can address: systems that overcommit map anything less.
    CHECK(error_of([&] { device.empty({std::int64_t{1} << 58}, DType::u8); }) ==
          ErrorCode::buffer_allocation);
    CHECK(error_of([&] { device.empty({INT64_MAX, 8}, DType::f32); }) ==
          ErrorCode::invalid_argument);
  }
}

TEST_CASE("host views check the dtype") {
  const Buffer buffer = Device("cpu").empty({4}, DType::f16);
  CHECK(buffer.host<std::uint16_t>() != nullptr);
  CHECK(error_of([&] { buffer.host<float>(); }, "holds f16") == ErrorCode::unsupported_dtype);
  CHECK(error_of([] { Buffer().host<float>(); }) == ErrorCode::invalid_argument);
}

TEST_CASE("wrapped memory is the caller's own, kept alive by its owner") {
  const Device device("cpu");
  auto memory = std::make_shared<std::vector<float>>(8, 2.0f);
  std::weak_ptr<std::vector<float>> watch = memory;
  Buffer buffer = device.wrap({memory->data(), 32, false, memory}, DType::f32, {8});
  buffer.host<float>()[3] = 7;
  CHECK((*memory)[3] == 7);
  memory.reset();
  CHECK(!watch.expired());
  buffer = Buffer();
  CHECK(watch.expired());
  float value = 0;
  void* odd = reinterpret_cast<char*>(&value) + 1;
  CHECK(error_of([&] { device.wrap({odd, 4, false, nullptr}, DType::f32, {1}); }, "aligned") ==
        ErrorCode::invalid_argument);
  CHECK(error_of([&] { device.wrap({&value, 4, false, nullptr}, DType::f32, {2}); }) ==
        ErrorCode::invalid_argument);
}

TEST_CASE("device kinds and options") {
  CHECK(Device("cpu") == Device("cpu"));
  CHECK(Device("cpu", {1, ""}) == Device("cpu", {2, ""}));
  CHECK(error_of([] { Device("gpu"); }, "takes \"auto\", \"metal\" or \"cpu\"") ==
        ErrorCode::device_not_found);
  CHECK(error_of([] { Device("cpu", {-1, ""}); }, "threads") == ErrorCode::invalid_argument);
  CHECK(error_of([] { Device("cpu", {0, "mmx"}); }, "mmx") == ErrorCode::invalid_argument);
  CHECK(error_of([] { set_num_threads(0); }, "n_threads") == ErrorCode::invalid_argument);
}
