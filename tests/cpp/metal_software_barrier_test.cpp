// Barriers: as many as the hazards need, no more, and none missing. The software device runs
// concurrent dispatches in shuffled order, so a missing one gives wrong numbers under some seed.
#include <algorithm>

#include "metal_support.h"
#include "tests/metal/software_metal.h"

namespace metal_sdpa::test {
namespace {

constexpr std::uint64_t kSeeds = 12;
constexpr int kChainLength = 6;

struct Rig {
  Rig() {
    software_metal_reset();
    registry.register_source("test", kTestKernels);
    chain = registry.get_pipeline("chain");
    x = device.empty({64}, DType::f32);
  }
  ~Rig() { software_metal_reset(); }

  BufferRange range(std::size_t first, std::size_t count) const {
    return {x, first * sizeof(float), count * sizeof(float)};
  }

  /// x[to..to+16] = 2 x[from..from+16] + 1, declared or not.
  void step(CommandEncoder& encoder, std::size_t from, std::size_t to, bool declare) const {
    DispatchOptions options;
    if (declare) {
      options.reads = {{range(from, 16)}};
      options.writes = {{range(to, 16)}};
    }
    encoder.encode_threadgroups(
        chain,
        {{0, x.slice_view(from * sizeof(float), 16)}, {1, x.slice_view(to * sizeof(float), 16)}},
        {1, 1, 1}, {16, 1, 1}, options);
  }

  void clear() const { std::fill(x.host<float>(), x.host<float>() + 64, 0.0f); }

  Device device{"metal"};
  KernelRegistry registry{device};
  std::shared_ptr<Pipeline> chain;
  Buffer x;
};

}  // namespace

TEST_CASE("software metal: a barrier stands between dependent dispatches, whatever the order") {
  const Rig rig;
  for (const bool declare : {true, false}) {
    for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) {
      software_metal_set_seed(seed);
      software_metal_reset_counts();
      rig.clear();
      CommandEncoder encoder = rig.device.command_encoder();
      for (int i = 0; i < kChainLength; ++i) rig.step(encoder, 0, 0, declare);
      encoder.commit_and_wait();
      CHECK(encoder.barrier_count() == kChainLength - 1);
      CHECK(software_metal_count(SOFTWARE_METAL_BARRIERS) == kChainLength - 1);
      CHECK(rig.x.host<float>()[0] == 63.0f);  // 2^6 - 1
    }
  }
}

TEST_CASE("software metal: independent dispatches have no barrier") {
  const Rig rig;
  rig.clear();
  CommandEncoder encoder = rig.device.command_encoder();
  for (std::size_t part = 0; part < 4; ++part) rig.step(encoder, part * 16, part * 16, true);
  encoder.commit_and_wait();
  CHECK(encoder.barrier_count() == 0);
  CHECK(software_metal_count(SOFTWARE_METAL_BARRIERS) == 0);
  CHECK(std::count(rig.x.host<float>(), rig.x.host<float>() + 64, 1.0f) == 64);
}

TEST_CASE("software metal: write after read waits too") {
  const Rig rig;
  for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) {
    software_metal_set_seed(seed);
    rig.clear();
    CommandEncoder encoder = rig.device.command_encoder();
    rig.step(encoder, 0, 16, true);  // reads 0..16
    rig.step(encoder, 32, 0, true);  // writes 0..16
    rig.step(encoder, 0, 48, true);  // reads what was written
    encoder.commit_and_wait();
    CHECK(encoder.barrier_count() == 2);
    CHECK(rig.x.host<float>()[16] == 1.0f);
    CHECK(rig.x.host<float>()[0] == 1.0f);
    CHECK(rig.x.host<float>()[48] == 3.0f);
  }
}

TEST_CASE("software metal: one encoder a command buffer, one command buffer an encoder") {
  const Rig rig;
  rig.device.synchronize();
  software_metal_reset_counts();
  CommandEncoder encoder = rig.device.command_encoder();
  for (int i = 0; i < 5; ++i) rig.step(encoder, 0, 0, true);
  encoder.commit_and_wait();
  CHECK(software_metal_count(SOFTWARE_METAL_ENCODERS) == 1);
  CHECK(software_metal_count(SOFTWARE_METAL_COMMAND_BUFFERS) == 1);
  CHECK(software_metal_count(SOFTWARE_METAL_DISPATCHES) == 5);
}

}  // namespace metal_sdpa::test
