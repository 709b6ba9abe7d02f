// Elements further than 2^31 from the first: addresses are reserved, few of them are touched.
#if defined(__linux__)
#include <sys/mman.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "metal_problems.h"
#include "support.h"

namespace metal_sdpa::test {
namespace {

// Past 2^31 elements and past 2^32 bytes in every dtype.
constexpr std::int64_t kFar = (std::int64_t{1} << 31) + 4096 + 64;

/// Memory that takes room only where it is touched.
Buffer reserved(const Device& device, std::int64_t n_elements, DType dtype) {
  const std::size_t page = 16384;
  const std::size_t bytes =
      (static_cast<std::size_t>(n_elements) * dtype_size(dtype) + page - 1) / page * page;
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(data != MAP_FAILED);
  const std::shared_ptr<void> owner(data, [bytes](void* memory) { munmap(memory, bytes); });
  return device.wrap({data, bytes, false, owner}, dtype,
                     {static_cast<std::int64_t>(bytes / dtype_size(dtype))});
}

/// The tensor's elements in order of [b][h][i], and where each row stands.
struct Rows {
  Buffer buffer;
  TensorLayout layout;
  std::int64_t batch, heads, rows, width;
};

template <typename Visit>
void each_row(const Rows& rows, const Visit& visit) {
  std::int64_t index = 0;
  for (std::int64_t b = 0; b < rows.batch; ++b) {
    for (std::int64_t h = 0; h < rows.heads; ++h) {
      for (std::int64_t i = 0; i < rows.rows; ++i) {
        const TensorLayout& at = rows.layout;
        visit(at.offset + b * at.batch_stride + h * at.head_stride + i * at.row_stride, index++);
      }
    }
  }
}

/// Copies rows between layouts, in bytes.
void copy_rows(const Rows& from, const Rows& to) {
  std::vector<std::int64_t> places;
  each_row(from, [&](std::int64_t place, std::int64_t) { places.push_back(place); });
  const auto size = static_cast<std::int64_t>(dtype_size(from.buffer.dtype()));
  each_row(to, [&](std::int64_t place, std::int64_t index) {
    std::memcpy(static_cast<std::byte*>(to.buffer.data()) + place * size,
                static_cast<const std::byte*>(from.buffer.data()) +
                    places[static_cast<std::size_t>(index)] * size,
                static_cast<std::size_t>(from.width * size));
  });
}

std::int64_t extent(const Rows& rows) {
  std::int64_t last = 0;
  each_row(rows, [&](std::int64_t place, std::int64_t) { last = std::max(last, place); });
  return last + rows.width;
}

enum class Axis { offset, batch, head, row };

/// The layout with one axis stretched far.
TensorLayout stretched(TensorLayout layout, Axis axis) {
  switch (axis) {
    case Axis::offset:
      layout.offset = kFar;
      break;
    case Axis::batch:
      layout.batch_stride = kFar;
      break;
    case Axis::head:
      layout.head_stride = kFar;
      break;
    case Axis::row:
      layout.row_stride = kFar / 2;
      break;
  }
  return layout;
}

/// The tensor in memory of its own where `axis` reaches far, with the same elements.
Rows moved_far(const Device& device, const Rows& near, Axis axis) {
  Rows far = near;
  far.layout = stretched(near.layout, axis);
  far.buffer = reserved(device, extent(far), near.buffer.dtype());
  copy_rows(near, far);
  return far;
}

}  // namespace

TEST_CASE("every tensor may reach past 2^31 elements, along every axis") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    std::mt19937 rng(81);
    for (const std::int64_t seq_len : {1, 20}) {
      const DType dtype = seq_len == 1 ? DType::bf16 : DType::f32;
      SdpaProblem problem = problem_of({2, 2, 2, seq_len, 20, 20, 16, 16, true}, dtype);
      const SdpaOperands near = random_operands(rng, device, problem);
      for (const std::string& kernel : kernels_for(device, problem)) {
        problem.kernel = kernel;
        sdpa(device, near, problem);
        const auto expected = bytes_of(near.out);
        for (const Axis axis : {Axis::offset, Axis::batch, Axis::head, Axis::row}) {
          if (axis == Axis::row && kind != "cpu") continue;  // buffers of 80 GB
          for (const char tensor : {'q', 'k', 'v', 'o'}) {
            INFO(kind, " ", kernel, " tensor ", tensor, " axis ", static_cast<int>(axis));
            SdpaProblem far_problem = problem;
            SdpaOperands x = near;
            const bool is_query = tensor == 'q' || tensor == 'o';
            Buffer& buffer = tensor == 'q'   ? x.q
                             : tensor == 'k' ? x.k
                             : tensor == 'v' ? x.v
                                             : x.out;
            TensorLayout& layout = tensor == 'q'   ? far_problem.q
                                   : tensor == 'k' ? far_problem.k
                                   : tensor == 'v' ? far_problem.v
                                                   : far_problem.out;
            const Rows rows{buffer, layout, 2, 2, is_query ? seq_len : 20, 16};
            const Rows far = moved_far(device, rows, axis);
            buffer = far.buffer;
            layout = far.layout;
            fill_bytes(near.out, 0xff);
            sdpa(device, x, far_problem);
            if (tensor == 'o') copy_rows(far, rows);
            CHECK(bytes_of(near.out) == expected);
          }
        }
      }
    }
  }
}

TEST_CASE("an encoded call, its ranges and its replay reach as far") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    std::mt19937 rng(82);
    SdpaProblem problem = problem_of({2, 2, 2, 1, 20, 20, 16, 16, true}, DType::f16);
    const SdpaOperands near = random_operands(rng, device, problem);
    sdpa(device, near, problem);
    const auto expected = bytes_of(near.out);
    const Rows out = moved_far(device, {near.out, problem.out, 2, 2, 1, 16}, Axis::batch);
    const Rows keys = moved_far(device, {near.k, problem.k, 2, 2, 20, 16}, Axis::head);
    SdpaProblem far = problem;
    far.out = out.layout;
    far.k = keys.layout;
    const SdpaOperands x{near.q, keys.buffer, near.v, out.buffer, near.lse};
    CommandEncoder recorder(device);
    recorder.begin_capture();
    encode_sdpa(recorder, default_registry(device), device, x, far);
    const Graph graph = recorder.end_capture();
    CommandEncoder encoder(device);
    graph.replay(encoder);
    // Reads, as its queries, what the replay writes last: its range must reach there.
    SdpaOperands second = near;
    SdpaProblem next = problem;
    second.q = out.buffer;
    next.q = out.layout;
    second.out = device.alloc_buffer(near.out.byte_len(), DType::f16, near.out.shape());
    encode_sdpa(encoder, default_registry(device), device, second, next);
    CHECK(encoder.barrier_count() >= 1);
    encoder.commit_and_wait();
    fill_bytes(near.out, 0xff);
    copy_rows(out, {near.out, problem.out, 2, 2, 1, 16});
    INFO(kind);
    CHECK(bytes_of(near.out) == expected);
    SdpaOperands direct = near;
    direct.q = device.alloc_buffer(near.out.byte_len(), DType::f16, near.out.shape());
    std::memcpy(direct.q.data(), near.out.data(), near.out.byte_len());
    direct.out = device.alloc_buffer(near.out.byte_len(), DType::f16, near.out.shape());
    sdpa(device, direct, problem);
    CHECK(bytes_of(direct.out) == bytes_of(second.out));
  }
}

}  // namespace metal_sdpa::test
#endif
