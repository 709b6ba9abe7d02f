// Threads of a threadgroup: barriers, divergence, simdgroup functions, matrices, shuffling.
#include <cmath>
#include <cstring>
#include <random>

#include "fixture.hpp"

using namespace tests;

namespace {

constexpr MTL::CommandBufferStatus kCompleted = MTL::CommandBufferStatusCompleted;
constexpr MTL::CommandBufferStatus kFailed = MTL::CommandBufferStatusError;

// Thread i writes, thread 127 - i reads; the two are in different simdgroups.
std::string reversal(const char* barrier) {
  return std::string(R"(
kernel void reverse(device float* out [[buffer(0)]], threadgroup float* tile [[threadgroup(0)]],
                    uint i [[thread_index_in_threadgroup]]) {
  tile[i] = float(i);
  )") + barrier +
         R"(
  out[i] = tile[127 - i];
}
)";
}

bool reverses(Fixture& fixture, const NS::SharedPtr<MTL::ComputePipelineState>& state) {
  auto out = fixture.buffer(128 * 4);
  REQUIRE(fixture.run(state, {out}, {1, 1, 1}, {128, 1, 1}, {512}) == kCompleted);
  for (int i = 0; i < 128; ++i) {
    if (Fixture::data<float>(out)[i] != float(127 - i)) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("with its barrier a kernel is right under every seed") {
  Fixture fixture;
  auto state =
      fixture.pipeline(reversal("threadgroup_barrier(mem_flags::mem_threadgroup);"), "reverse");
  for (unsigned seed = 0; seed < 20; ++seed) {
    software_metal_set_seed(seed);
    CHECK(reverses(fixture, state));
  }
}

TEST_CASE("without its barrier a kernel is wrong under each of a few seeds") {
  Fixture fixture;
  auto state = fixture.pipeline(reversal(""), "reverse");
  for (unsigned seed = 0; seed < 20; ++seed) {
    software_metal_set_seed(seed);
    CHECK_FALSE(reverses(fixture, state));
  }
}

TEST_CASE("a missing barrier behind the reads of a loop shows: a fast simdgroup overtakes") {
  Fixture fixture;
  auto source = [](const char* barrier) {
    return std::string(R"(
kernel void rotate(device float* out [[buffer(0)]], threadgroup float* tile [[threadgroup(0)]],
                   uint i [[thread_index_in_threadgroup]]) {
  float sum = 0;
  for (uint step = 0; step < 4; ++step) {
    tile[i] = float(i * 10 + step);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum += tile[(i + 64) % 128];
    )") + barrier +
           R"(
  }
  out[i] = sum;
}
)";
  };
  auto is_right = [&](const char* barrier, unsigned seed) {
    auto state = fixture.pipeline(source(barrier), "rotate");
    software_metal_set_seed(seed);
    auto out = fixture.buffer(512);
    REQUIRE(fixture.run(state, {out}, {1, 1, 1}, {128, 1, 1}, {512}) == kCompleted);
    for (int i = 0; i < 128; ++i) {
      if (Fixture::data<float>(out)[i] != float((i + 64) % 128 * 40 + 6)) return false;
    }
    return true;
  };
  int wrong = 0;
  for (unsigned seed = 0; seed < 5; ++seed) {
    CHECK(is_right("threadgroup_barrier(mem_flags::mem_threadgroup);", seed));
    wrong += !is_right("", seed);
  }
  CHECK(wrong > 0);
}

TEST_CASE("lanes of one simdgroup need simdgroup_barrier to see each other's stores") {
  Fixture fixture;
  auto source = [](const char* barrier) {
    return std::string(R"(
kernel void neighbour(device float* out [[buffer(0)]], threadgroup float* tile [[threadgroup(0)]],
                      uint i [[thread_index_in_simdgroup]]) {
  tile[i] = float(i);
  )") + barrier +
           "out[i] = tile[(i + 1) % 32];\n}\n";
  };
  auto is_right = [&](const char* barrier, unsigned seed) {
    auto state = fixture.pipeline(source(barrier), "neighbour");
    software_metal_set_seed(seed);
    auto out = fixture.buffer(128);
    REQUIRE(fixture.run(state, {out}, {1, 1, 1}, {32, 1, 1}, {128}) == kCompleted);
    for (int i = 0; i < 32; ++i) {
      if (Fixture::data<float>(out)[i] != float((i + 1) % 32)) return false;
    }
    return true;
  };
  for (unsigned seed = 0; seed < 5; ++seed) {
    CHECK(is_right("simdgroup_barrier(mem_flags::mem_threadgroup);", seed));
    CHECK_FALSE(is_right("", seed));
  }
}

TEST_CASE("threadgroup memory starts as NaN") {
  Fixture fixture;
  auto state = fixture.pipeline(R"(
kernel void peek(device float* out [[buffer(0)]], threadgroup float* tile [[threadgroup(0)]],
                 uint group [[threadgroup_position_in_grid]]) {
  out[group] = tile[3];
  tile[3] = 1.0f;
}
)",
                                "peek");
  auto out = fixture.buffer(16);
  CHECK(fixture.run(state, {out}, {4, 1, 1}, {1, 1, 1}, {16}) == kCompleted);
  for (int i = 0; i < 4; ++i) CHECK(std::isnan(Fixture::data<float>(out)[i]));
}

TEST_CASE("threads that return before a barrier are reported") {
  Fixture fixture;
  auto state = fixture.pipeline(R"(
kernel void leave(device float* out [[buffer(0)]], uint i [[thread_index_in_threadgroup]]) {
  if (i >= 40) return;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = 1;
}
)",
                                "leave");
  auto out = fixture.buffer(256);
  CHECK(fixture.run(state, {out}, {1, 1, 1}, {64, 1, 1}) == kFailed);
  std::string report = Fixture::take_violations();
  CHECK_CONTAINS(report, "leave: threadgroup (0, 0, 0): divergence in a threadgroup");
  CHECK_CONTAINS(report, "threads have returned");
  CHECK_CONTAINS(report, "wait at threadgroup_barrier (line 6)");
  CHECK_CONTAINS(fixture.error, "divergence");
}

TEST_CASE("simdgroups at different barriers are reported") {
  Fixture fixture;
  auto state = fixture.pipeline(R"(
kernel void part(device float* out [[buffer(0)]], uint s [[simdgroup_index_in_threadgroup]]) {
  if (s == 0) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  } else {
    threadgroup_barrier(mem_flags::mem_none);
  }
  out[s] = 1;
}
)",
                                "part");
  auto out = fixture.buffer(256);
  CHECK(fixture.run(state, {out}, {1, 1, 1}, {64, 1, 1}) == kFailed);
  std::string report = Fixture::take_violations();
  CHECK_CONTAINS(report, "32 threads wait at threadgroup_barrier (line 6)");
  CHECK_CONTAINS(report, "32 threads wait at threadgroup_barrier (line 8)");
}

TEST_CASE("a matrix operation of half a simdgroup is reported, and later work is unaffected") {
  Fixture fixture;
  auto state = fixture.pipeline(R"(
kernel void half_mma(device float* out [[buffer(0)]], uint lane [[thread_index_in_simdgroup]]) {
  simdgroup_float8x8 a = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
  if (lane < 16) simdgroup_multiply_accumulate(a, a, a, a);
  out[lane] = a.thread_elements().x;
}
)",
                                "half_mma");
  auto out = fixture.buffer(256);
  CHECK(fixture.run(state, {out}, {1, 1, 1}, {32, 1, 1}) == kFailed);
  CHECK_CONTAINS(Fixture::take_violations(), "simdgroup_multiply_accumulate");
  auto good =
      fixture.pipeline(reversal("threadgroup_barrier(mem_flags::mem_threadgroup);"), "reverse");
  CHECK(reverses(fixture, good));
}

TEST_CASE("simdgroup functions combine all lanes") {
  Fixture fixture;
  auto state = fixture.pipeline(R"(
kernel void reduce(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                   uint lane [[thread_index_in_simdgroup]]) {
  float v = x[lane];
  device float* row = out + lane * 16;
  row[0] = simd_sum(v);
  row[1] = simd_max(v);
  row[2] = simd_min(v);
  row[3] = simd_shuffle(v, 5);
  row[4] = simd_shuffle_xor(v, 3);
  row[5] = simd_shuffle_down(v, 2);
  row[6] = simd_shuffle_up(v, 2);
  row[7] = simd_broadcast(v, 31);
  row[8] = simd_broadcast_first(v);
  row[9] = float(ulong(simd_ballot(v > 10.0f)) & 0xffffff);
  row[10] = simd_any(v > 30.5f);
  row[11] = simd_all(v > 0.5f);
  row[12] = simd_is_first();
  row[13] = simd_prefix_exclusive_sum(v);
  row[14] = simd_prefix_inclusive_sum(v);
  row[15] = simd_sum(half(v));
}
)",
                                "reduce");
  std::vector<float> x(32);
  for (int i = 0; i < 32; ++i) x[i] = float(i + 1);
  auto in = fixture.buffer(x), out = fixture.buffer(32 * 16 * 4);
  CHECK(fixture.run(state, {in, out}, {1, 1, 1}, {32, 1, 1}) == kCompleted);
  for (int lane = 0; lane < 32; ++lane) {
    const float* row = Fixture::data<float>(out) + lane * 16;
    CHECK(row[0] == 528);
    CHECK(row[1] == 32);
    CHECK(row[2] == 1);
    CHECK(row[3] == 6);
    CHECK(row[4] == float((lane ^ 3) + 1));
    if (lane < 30) CHECK(row[5] == float(lane + 3));
    if (lane >= 2) CHECK(row[6] == float(lane - 1));
    CHECK(row[7] == 32);
    CHECK(row[8] == 1);
    CHECK(row[9] == float(0xfffffc00u & 0xffffffu));
    CHECK(row[10] == 1);
    CHECK(row[11] == 1);
    CHECK(row[12] == (lane == 0));
    CHECK(row[13] == float(lane * (lane + 1) / 2));
    CHECK(row[14] == float((lane + 1) * (lane + 2) / 2));
    CHECK(row[15] == 528);
  }
}

TEST_CASE("simdgroup functions take the active lanes only") {
  Fixture fixture;
  auto state = fixture.pipeline(R"(
kernel void active(device float* out [[buffer(0)]], uint lane [[thread_index_in_simdgroup]]) {
  float sum = 0;
  if (lane % 2 == 1) {
    sum = simd_sum(1.0f);
  } else if (lane >= 16) {
    sum = simd_sum(2.0f);
  }
  out[lane] = sum + 100 * simd_sum(1.0f);
}
)",
                                "active");
  auto out = fixture.buffer(128);
  CHECK(fixture.run(state, {out}, {1, 1, 1}, {32, 1, 1}) == kCompleted);
  for (int lane = 0; lane < 32; ++lane) {
    float expected = lane % 2 == 1 ? 16 : lane >= 16 ? 16 : 0;
    CHECK(Fixture::data<float>(out)[lane] == expected + 3200);
  }
}

TEST_CASE("a last simdgroup with fewer lanes sums those") {
  Fixture fixture;
  auto state = fixture.pipeline(R"(
kernel void count(device float* out [[buffer(0)]], uint i [[thread_index_in_threadgroup]],
                  uint n [[simdgroups_per_threadgroup]]) {
  out[i] = simd_sum(1.0f) + 1000 * n;
}
)",
                                "count");
  auto out = fixture.buffer(40 * 4);
  CHECK(fixture.run(state, {out}, {1, 1, 1}, {40, 1, 1}) == kCompleted);
  CHECK(Fixture::data<float>(out)[0] == 2032);
  CHECK(Fixture::data<float>(out)[39] == 2008);
}

TEST_CASE("positions in one, two and three dimensions, and a grid with ragged edges") {
  Fixture fixture;
  auto state = fixture.pipeline(R"(
kernel void positions(device uint* out [[buffer(0)]], uint3 at [[thread_position_in_grid]],
                      uint3 grid [[threads_per_grid]], ushort2 local [[thread_position_in_threadgroup]],
                      uint3 group [[threadgroup_position_in_grid]],
                      uint3 groups [[threadgroups_per_grid]], uint2 size [[threads_per_threadgroup]],
                      uint3 full [[dispatch_threads_per_threadgroup]]) {
  uint i = (at.z * grid.y + at.y) * grid.x + at.x;
  bool ok = at.x == group.x * full.x + local.x && at.y == group.y * full.y + local.y;
  ok = ok && groups.x == 3 && groups.y == 2 && groups.z == 2;
  ok = ok && size.x == (group.x == 2 ? 2 : 4) && size.y == (group.y == 1 ? 1 : 4);
  out[i] = ok ? i + 1 : 0;
}
)",
                                "positions");
  auto out = fixture.buffer(10 * 5 * 2 * 4);
  MTL::CommandBuffer* command_buffer = fixture.queue->commandBuffer();
  MTL::ComputeCommandEncoder* encoder = command_buffer->computeCommandEncoder();
  encoder->setComputePipelineState(state.get());
  encoder->setBuffer(out.get(), 0, 0);
  encoder->dispatchThreads({10, 5, 2}, {4, 4, 1});
  encoder->endEncoding();
  command_buffer->commit();
  command_buffer->waitUntilCompleted();
  for (unsigned i = 0; i < 100; ++i) CHECK(Fixture::data<std::uint32_t>(out)[i] == i + 1);
}

TEST_CASE("threadgroup arrays declared in a kernel are shared and poisoned") {
  Fixture fixture;
  auto state = fixture.pipeline(R"(
template <typename T, int N>
[[kernel]] void arrays(device T* out [[buffer(0)]], uint i [[thread_index_in_threadgroup]]) {
  threadgroup T tile[N][2];
  threadgroup T first, unwritten[1];
  tile[i][1] = T(i);
  if (i == 7) first = T(70);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = tile[N - 1 - i][1] + first;
  if (i == 0) out[N] = unwritten[0];
}
template [[host_name("arrays64")]] [[kernel]] decltype(arrays<float, 64>) arrays<float, 64>;
)",
                                "arrays64");
  auto out = fixture.buffer(65 * 4);
  CHECK(fixture.run(state, {out}, {1, 1, 1}, {64, 1, 1}) == kCompleted);
  for (int i = 0; i < 64; ++i) CHECK(Fixture::data<float>(out)[i] == float(63 - i + 70));
  CHECK(std::isnan(Fixture::data<float>(out)[64]));
}

TEST_CASE("threadgroup arrays over 32 KB are reported") {
  Fixture fixture;
  auto state = fixture.pipeline(R"(
kernel void large(device float* out [[buffer(0)]], uint i [[thread_index_in_threadgroup]]) {
  threadgroup float tile[8200];
  tile[i] = 1;
  out[i] = tile[i];
}
)",
                                "large");
  auto out = fixture.buffer(128);
  CHECK(fixture.run(state, {out}, {1, 1, 1}, {32, 1, 1}) == kFailed);
  CHECK_CONTAINS(Fixture::take_violations(), "32800 bytes of threadgroup memory");
}

#ifndef __SANITIZE_ADDRESS__
#if !__has_feature(address_sanitizer)
TEST_CASE("a write outside of threadgroup memory or past a buffer is reported") {
  Fixture fixture;
  auto state = fixture.pipeline(R"(
kernel void past(device float* out [[buffer(0)]], threadgroup float* tile [[threadgroup(0)]]) {
  tile[4] = 1;
  out[5] = 1;
}
)",
                                "past");
  auto out = fixture.buffer(20);
  CHECK(fixture.run(state, {out}, {1, 1, 1}, {1, 1, 1}, {16}) == kFailed);
  CHECK_CONTAINS(Fixture::take_violations(), "a write outside of threadgroup memory");
  out.reset();
  CHECK_CONTAINS(Fixture::take_violations(), "a write past the end of MTLBuffer, 20 bytes long");
}
#endif
#endif

// ----- simdgroup_matrix

namespace {

std::vector<float> random_values(std::size_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> values(n);
  for (float& value : values) value = uniform(generator);
  return values;
}

}  // namespace

TEST_CASE("simdgroup matrices: load, transpose, origin, multiply, store") {
  Fixture fixture;
  auto state = fixture.pipeline(R"(
kernel void multiply(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]],
                     device float* out [[buffer(2)]]) {
  simdgroup_matrix<float, 8, 8> ma, mb, mbt, product, transposed;
  simdgroup_load(ma, a, 16, ulong2(3, 2));
  simdgroup_load(mb, b, 8);
  simdgroup_load(mbt, b, 8, 0, true);
  product = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
  simdgroup_multiply_accumulate(product, ma, mb, product);
  simdgroup_multiply(transposed, ma, mbt);
  simdgroup_store(product, out, 8);
  simdgroup_store(transposed, out + 64, 8, ulong2(0, 0), true);
}
)",
                                "multiply");
  auto a = random_values(256, 1), b = random_values(64, 2);
  auto ba = fixture.buffer(a), bb = fixture.buffer(b), out = fixture.buffer(128 * 4);
  CHECK(fixture.run(state, {ba, bb, out}, {1, 1, 1}, {32, 1, 1}) == kCompleted);
  for (int i = 0; i < 8; ++i) {
    for (int j = 0; j < 8; ++j) {
      double product = 1, transposed = 0;
      for (int k = 0; k < 8; ++k) {
        double left = a[(i + 2) * 16 + k + 3];
        product += left * b[k * 8 + j];
        transposed += left * b[j * 8 + k];
      }
      CHECK(Fixture::data<float>(out)[i * 8 + j] == doctest::Approx(product).epsilon(1e-6));
      CHECK(Fixture::data<float>(out)[64 + j * 8 + i] == doctest::Approx(transposed).epsilon(1e-5));
    }
  }
}

TEST_CASE("thread_elements follows the documented layout") {
  Fixture fixture;
  auto state = fixture.pipeline(R"(
kernel void layout(device float* out [[buffer(0)]], uint lane [[thread_index_in_simdgroup]]) {
  simdgroup_matrix<half, 8, 8> m;
  m.thread_elements() = half2(half(2 * lane), half(2 * lane + 1));
  simdgroup_matrix<float, 8, 8> wide(0);
  thread float2& pair = wide.thread_elements();
  pair.x = float(m.thread_elements()[0]);
  pair.y = float(m.thread_elements()[1]);
  simdgroup_store(wide, out, 8);
  simdgroup_store(simdgroup_matrix<float, 8, 8>(3), out + 64, 8);
}
)",
                                "layout");
  auto out = fixture.buffer(128 * 4);
  CHECK(fixture.run(state, {out}, {1, 1, 1}, {32, 1, 1}) == kCompleted);
  for (int lane = 0; lane < 32; ++lane) {
    int row = (lane / 16) * 4 + (lane % 8) / 2, column = ((lane % 16) / 8) * 4 + (lane % 2) * 2;
    CHECK(Fixture::data<float>(out)[row * 8 + column] == float(2 * lane));
    CHECK(Fixture::data<float>(out)[row * 8 + column + 1] == float(2 * lane + 1));
  }
  for (int i = 0; i < 64; ++i) CHECK(Fixture::data<float>(out)[64 + i] == (i % 9 == 0 ? 3 : 0));
}

TEST_CASE("half and bfloat matrices accumulate in float") {
  Fixture fixture;
  auto state = fixture.pipeline(R"(
template <typename T>
kernel void mixed(device float* out [[buffer(0)]]) {
  simdgroup_matrix<T, 8, 8> a = make_filled_simdgroup_matrix<T, 8, 8>(T(0.5f));
  simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8, 8>(4096.25f);
  simdgroup_multiply_accumulate(sum, a, a, sum);
  simdgroup_store(sum, out, 8);
}
template [[host_name("mixed_half")]] kernel void mixed<half>(device float* out [[buffer(0)]]);
template [[host_name("mixed_bfloat")]] kernel void mixed<bfloat>(device float* out [[buffer(0)]]);
)",
                                "mixed_half");
  auto out = fixture.buffer(64 * 4);
  CHECK(fixture.run(state, {out}, {1, 1, 1}, {32, 1, 1}) == kCompleted);
  CHECK(Fixture::data<float>(out)[63] == 4098.25f);
}

TEST_CASE("a matrix load sees another lane's store only behind a barrier") {
  Fixture fixture;
  auto source = [](const char* barrier) {
    return std::string(R"(
kernel void through(device float* out [[buffer(0)]], threadgroup float* tile [[threadgroup(0)]],
                    uint lane [[thread_index_in_simdgroup]]) {
  tile[lane * 2] = float(lane * 2);
  tile[lane * 2 + 1] = float(lane * 2 + 1);
  )") + barrier +
           R"(
  simdgroup_float8x8 m;
  simdgroup_load(m, tile, 8);
  simdgroup_store(m, out, 8);
}
)";
  };
  auto is_right = [&](const char* barrier) {
    auto state = fixture.pipeline(source(barrier), "through");
    auto out = fixture.buffer(256);
    REQUIRE(fixture.run(state, {out}, {1, 1, 1}, {32, 1, 1}, {256}) == kCompleted);
    for (int i = 0; i < 64; ++i) {
      if (Fixture::data<float>(out)[i] != float(i)) return false;
    }
    return true;
  };
  for (unsigned seed = 0; seed < 3; ++seed) {
    software_metal_set_seed(seed);
    CHECK(is_right("simdgroup_barrier(mem_flags::mem_threadgroup);"));
    CHECK_FALSE(is_right(""));
  }
}

// ----- Order

TEST_CASE("threadgroups and threads run in an order that follows the seed") {
  Fixture fixture;
  auto state = fixture.pipeline(R"(
kernel void arrive(device atomic_uint* next [[buffer(0)]], device uint* out [[buffer(1)]],
                   uint i [[thread_position_in_grid]]) {
  out[i] = atomic_fetch_add_explicit(next, 1u, memory_order_relaxed);
}
)",
                                "arrive");
  auto order = [&](unsigned seed) {
    software_metal_set_seed(seed);
    auto next = fixture.buffer(4), out = fixture.buffer(256 * 4);
    CHECK(fixture.run(state, {next, out}, {4, 1, 1}, {64, 1, 1}) == kCompleted);
    auto* at = Fixture::data<std::uint32_t>(out);
    return std::vector<std::uint32_t>(at, at + 256);
  };
  auto first = order(1);
  CHECK(first == order(1));
  CHECK(first != order(2));
  std::vector<bool> seen(256);
  for (std::uint32_t place : first) seen.at(place) = true;
  CHECK(std::count(seen.begin(), seen.end(), true) == 256);
  bool group_order_shuffled = false, thread_order_shuffled = false;
  for (unsigned seed = 0; seed < 8; ++seed) {
    auto now = order(seed);
    group_order_shuffled |= now[0] / 64 != 0;
    for (int i = 1; i < 32; ++i) thread_order_shuffled |= now[i] < now[i - 1];
  }
  CHECK(group_order_shuffled);
  CHECK(thread_order_shuffled);
}
