// What encode_sdpa and sdpa refuse, with which code and word, and that nothing is written then.
#include <cmath>

#include "problems.h"
#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

struct World {
  explicit World(const std::string& kind) : device(kind), registry(device) {
    q = device.empty({2, 4, 3, 8}, DType::f32);
    k = device.empty({2, 2, 6, 8}, DType::f32);
    v = device.empty({2, 2, 6, 8}, DType::f32);
    out = device.empty({2, 4, 3, 8}, DType::f32);
    fill_bytes(out, 0xab);
  }

  Device device;
  KernelRegistry registry;
  Buffer q, k, v, out;
  SdpaParams params{4, 2, 8, 3, 5, 0.3f, 6, true};

  void encode(const SdpaParams& p, std::int64_t batch = 2) const {
    CommandEncoder encoder(device);
    encode_sdpa(encoder, registry, device, q, k, v, out, p, batch);
    encoder.commit_and_wait();
  }
};

void refuse(const World& world, const std::string& word,
            const std::function<void(SdpaParams&)>& change) {
  SdpaParams params = world.params;
  change(params);
  CHECK(error_of([&] { world.encode(params); }, word) == ErrorCode::invalid_argument);
}

void refuse_buffers(const World& world, ErrorCode code, const std::string& word,
                    const std::function<void(World&)>& change) {
  World changed = world;
  change(changed);
  CHECK(error_of([&] { changed.encode(changed.params); }, word) == code);
}

}  // namespace

TEST_CASE("seed behaviours of SdpaParams") {
  const SdpaParams valid{16, 8, 256, 1, 100, 1.0f, 0, true};
  valid.validate();
  SdpaParams params = valid;
  params.head_dim = 0;
  CHECK(error_of([&] { params.validate(); }, "head_dim: 0") == ErrorCode::invalid_argument);
  params = valid;
  params.n_kv_heads = 7;
  CHECK(error_of([&] { params.validate(); }, "n_heads: 16") == ErrorCode::invalid_argument);
}

TEST_CASE("bad parameters are refused by name, and nothing is written") {
  for (const std::string& kind : device_kinds()) {
    const World world(kind);
    const std::vector<std::uint8_t> before = bytes_of(world.out);
    refuse(world, "n_heads", [](SdpaParams& p) { p.n_heads = 0; });
    refuse(world, "n_kv_heads", [](SdpaParams& p) { p.n_kv_heads = -2; });
    refuse(world, "n_heads", [](SdpaParams& p) { p.n_kv_heads = 3; });
    refuse(world, "head_dim", [](SdpaParams& p) { p.head_dim = 0; });
    refuse(world, "head_dim", [](SdpaParams& p) { p.head_dim = 1 << 20; });
    refuse(world, "seq_len", [](SdpaParams& p) { p.seq_len = 0; });
    refuse(world, "seq_len", [](SdpaParams& p) { p.seq_len = std::int64_t{1} << 40; });
    refuse(world, "kv_seq_len", [](SdpaParams& p) { p.kv_seq_len = 0; });
    refuse(world, "kv_capacity", [](SdpaParams& p) { p.kv_capacity = 4; });
    refuse(world, "kv_capacity", [](SdpaParams& p) { p.kv_capacity = -1; });
    refuse(world, "scale", [](SdpaParams& p) { p.scale = NAN; });
    refuse(world, "scale", [](SdpaParams& p) { p.scale = -INFINITY; });
    // 65,536 to the fourth power wraps 64 bits to zero.
    refuse(world, "q", [](SdpaParams& p) { p.n_heads = p.n_kv_heads = p.seq_len = 65536; });
    CHECK(error_of([&] { world.encode(world.params, 0); }, "batch_size") ==
          ErrorCode::invalid_argument);
    CHECK(error_of([&] { world.encode(world.params, 3); }, "q") == ErrorCode::invalid_argument);
    CHECK(bytes_of(world.out) == before);
    world.encode(world.params);
    CHECK(bytes_of(world.out) != before);
  }
}

TEST_CASE("bad memory is refused by name, and nothing is written") {
  for (const std::string& kind : device_kinds()) {
    const World world(kind);
    const Device& device = world.device;
    const std::vector<std::uint8_t> before = bytes_of(world.out);
    const auto invalid = ErrorCode::invalid_argument;
    const auto dtype = ErrorCode::unsupported_dtype;
    const Buffer half = device.empty({2, 2, 6, 8}, DType::f16);
    refuse_buffers(world, dtype, "k: dtype f16, but q has f32", [&](World& w) { w.k = half; });
    refuse_buffers(world, dtype, "v: dtype f16", [&](World& w) { w.v = half; });
    refuse_buffers(world, dtype, "output: dtype f16", [&](World& w) { w.out = half; });
    refuse_buffers(world, dtype, "q: dtype u8",
                   [&](World& w) { w.q = device.empty({768}, DType::u8); });
    // The view's extent counts, not the allocation behind it.
    refuse_buffers(world, invalid, "k:", [](World& w) { w.k = w.k.slice_view(4, 191); });
    refuse_buffers(world, invalid, "q:", [](World& w) { w.q = w.q.slice_view(0, 191); });
    refuse_buffers(world, invalid, "v:", [](World& w) { w.v = w.v.slice_view(0, 100); });
    refuse_buffers(world, invalid, "output:", [](World& w) { w.out = w.out.slice_view(0, 1); });
    refuse_buffers(world, invalid, "q: the buffer is empty", [](World& w) { w.q = Buffer(); });
    refuse_buffers(world, invalid, "overlaps q", [](World& w) { w.out = w.q; });
    refuse_buffers(world, invalid, "overlaps k", [&](World& w) {
      const Buffer arena = device.empty({1000}, DType::f32);
      w.k = arena.slice_view(0, 192);
      w.out = arena.slice_view(4 * 191, 192);
    });
    CHECK(bytes_of(world.out) == before);
  }
}

TEST_CASE("read-only and foreign memory") {
  const World world("cpu");
  std::vector<float> memory(192);
  World fixed = world;
  fixed.out = world.device.wrap({memory.data(), 768, true, nullptr}, DType::f32, {192});
  CHECK(error_of([&] { fixed.encode(fixed.params); }, "read-only") == ErrorCode::invalid_argument);
  fixed.out = world.out;
  fixed.q = world.device.wrap({memory.data(), 768, true, nullptr}, DType::f32, {192});
  fixed.encode(fixed.params);  // inputs may be read-only
  for (const std::string& kind : device_kinds()) {
    if (kind == "cpu") continue;
    World mixed = world;
    mixed.q = Device(kind).empty({2, 4, 3, 8}, DType::f32);
    CHECK(error_of([&] { mixed.encode(mixed.params); }, "another device") ==
          ErrorCode::invalid_argument);
    const Device other(kind);
    CommandEncoder encoder(other);
    CHECK(error_of(
              [&] {
                encode_sdpa(encoder, world.registry, world.device, world.q, world.k, world.v,
                            world.out, world.params, 2);
              },
              "encoder") == ErrorCode::invalid_argument);
  }
}

TEST_CASE("layouts, lengths and starts of a problem") {
  const Device device("cpu");
  std::mt19937 rng(9);
  SdpaProblem p;
  p.batch = 2;
  p.n_heads = 2;
  p.seq_len = 3;
  p.kv_capacity = 4;
  p.kv_len = 4;
  p.head_dim = p.value_dim = 8;
  p.return_lse = true;
  p.set_packed_layouts();
  const SdpaOperands x = random_operands(rng, device, p);
  const auto refuse_problem = [&](const std::string& word,
                                  const std::function<void(SdpaProblem&)>& change) {
    SdpaProblem changed = p;
    change(changed);
    CHECK(error_of([&] { sdpa(device, x, changed); }, word) == ErrorCode::invalid_argument);
  };
  refuse_problem("kv_lengths: 5", [](SdpaProblem& c) { c.kv_len = 5; });
  refuse_problem("kv_lengths: -1", [](SdpaProblem& c) { c.kv_lengths = {4, -1}; });
  refuse_problem("kv_lengths: 1 entries", [](SdpaProblem& c) { c.kv_lengths = {4}; });
  refuse_problem("q_start: 3 entries", [](SdpaProblem& c) { c.q_starts = {1, 2, 3}; });
  refuse_problem("q_start", [](SdpaProblem& c) { c.q_start = INT64_MIN; });
  refuse_problem("head_dim: 1025", [](SdpaProblem& c) { c.head_dim = 1025; });
  refuse_problem("value_dim", [](SdpaProblem& c) { c.value_dim = 0; });
  refuse_problem("output: its strides", [](SdpaProblem& c) { c.out.head_stride = 0; });
  refuse_problem("q:", [](SdpaProblem& c) { c.q.row_stride = -8; });
  refuse_problem("k:", [](SdpaProblem& c) { c.k.batch_stride = INT64_MAX / 2; });
  refuse_problem("q:", [](SdpaProblem& c) { c.q.offset = 1; });
  refuse_problem("kernel", [](SdpaProblem& c) { c.kernel = "no_such_family"; });
  SdpaOperands shared = x;
  shared.lse = x.q.slice_view(0, 12);
  CHECK(error_of([&] { sdpa(device, shared, p); }, "lse: overlaps q") ==
        ErrorCode::invalid_argument);
  shared.lse = x.out.slice_view(0, 12);
  CHECK(error_of([&] { sdpa(device, shared, p); }, "lse: overlaps output") ==
        ErrorCode::invalid_argument);
  sdpa(device, x, p);
}

TEST_CASE("an output may stand between inputs as long as no element is shared") {
  const Device device("cpu");
  std::mt19937 rng(10);
  // [L, 4, D]: q, k, v and out of one row side by side, as a fused projection lays them out.
  const Buffer arena = device.empty({5, 4, 8}, DType::f32);
  fill_normal(arena, rng, 1);
  SdpaProblem p;
  p.seq_len = p.kv_capacity = p.kv_len = 5;
  p.head_dim = p.value_dim = 8;
  p.q = {0, 0, 0, 32};
  p.k = {8, 0, 0, 32};
  p.v = {16, 0, 0, 32};
  p.out = {24, 0, 0, 32};
  sdpa(device, {arena, arena, arena, arena, {}}, p);
  p.out.offset = 23;
  CHECK(error_of([&] { sdpa(device, {arena, arena, arena, arena, {}}, p); }, "overlaps v") ==
        ErrorCode::invalid_argument);
}
