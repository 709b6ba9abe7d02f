// Views that start anywhere: every operand at an offset of its own, on every way to the device.
#include <cstring>
#include <string>
#include <vector>

#include "metal_problems.h"
#include "support.h"

namespace metal_sdpa::test {
namespace {

/// The contents of `source` as a slice of a slice of a larger allocation, `elements` in.
Buffer at_offset(const Device& device, const Buffer& source, std::size_t elements) {
  const std::size_t size = dtype_size(source.dtype());
  const std::size_t count = source.byte_len() / size;
  const Buffer all =
      device.empty({static_cast<std::int64_t>(count + elements + 7)}, source.dtype());
  fill_bytes(all, 0x7f);  // NaN in every dtype of attention
  const std::size_t first = elements / 2;
  const Buffer view = all.slice_view(first * size, count + elements - first)
                          .slice_view((elements - first) * size, count)
                          .reshape(source.shape());
  std::memcpy(view.data(), source.data(), source.byte_len());
  return view;
}

}  // namespace

TEST_CASE("every operand may start at any element: called, encoded, replayed, packed and not") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    std::mt19937 rng(91);
    for (const DType dtype : kDTypes) {
      for (const std::int64_t seq_len : {1, 11}) {
        SdpaProblem problem = problem_of({2, 4, 2, seq_len, 37, 40, 24, 24, true}, dtype);
        const SdpaOperands whole = random_operands(rng, device, problem);
        sdpa(device, whole, problem);
        const auto out = bytes_of(whole.out);
        const auto lse = bytes_of(whole.lse);
        for (std::size_t offset : {1u, 3u, 8u}) {
          const SdpaOperands x{
              at_offset(device, whole.q, offset), at_offset(device, whole.k, offset + 1),
              at_offset(device, whole.v, offset + 2), at_offset(device, whole.out, offset + 3),
              at_offset(device, whole.lse, offset + 4)};
          const auto check = [&](const char* way) {
            INFO(kind, " ", std::string(dtype_name(dtype)), " L ", seq_len, " offset ", offset, " ",
                 way);
            CHECK(bytes_of(x.out) == out);
            CHECK(bytes_of(x.lse) == lse);
            fill_bytes(x.out, 0xff);
            fill_bytes(x.lse, 0xff);
          };
          fill_bytes(x.out, 0xff);
          fill_bytes(x.lse, 0xff);
          sdpa(device, x, problem);
          check("called");
          CommandEncoder encoder(device);
          encode_sdpa(encoder, default_registry(device), device, x, problem);
          encoder.commit_and_wait();
          check("encoded");
          CommandEncoder recorder(device);
          recorder.begin_capture();
          encode_sdpa(recorder, default_registry(device), device, x, problem);
          const Graph graph = recorder.end_capture();
          CommandEncoder player(device);
          graph.replay(player);
          player.commit_and_wait();
          check("replayed");
        }
      }
    }
  }
}

TEST_CASE("what stands before and behind an output at an offset is not touched") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    std::mt19937 rng(92);
    for (const DType dtype : kDTypes) {
      for (const std::int64_t seq_len : {1, 11}) {
        SdpaProblem problem = problem_of({1, 2, 1, seq_len, 9, 9, 20, 20, true}, dtype);
        const SdpaOperands whole = random_operands(rng, device, problem);
        const std::size_t size = dtype_size(dtype);
        const std::size_t count = whole.out.byte_len() / size;
        const Buffer all = device.empty({static_cast<std::int64_t>(count + 10)}, dtype);
        const Buffer rows = device.empty({static_cast<std::int64_t>(2 * seq_len + 10)}, DType::f32);
        fill_bytes(all, 0xa5);
        fill_bytes(rows, 0xa5);
        SdpaOperands x = whole;
        x.out = all.slice_view(5 * size, count);
        x.lse = rows.slice_view(5 * 4, static_cast<std::size_t>(2 * seq_len));
        sdpa(device, x, problem);
        const auto is_kept = [](const Buffer& buffer, std::size_t margin) {
          const auto bytes = bytes_of(buffer);
          for (std::size_t i = 0; i < margin; ++i) {
            if (bytes[i] != 0xa5 || bytes[bytes.size() - 1 - i] != 0xa5) return false;
          }
          return true;
        };
        INFO(kind, " ", std::string(dtype_name(dtype)), " L ", seq_len);
        CHECK(is_kept(all, 5 * size));
        CHECK(is_kept(rows, 5 * 4));
      }
    }
  }
}

}  // namespace metal_sdpa::test
