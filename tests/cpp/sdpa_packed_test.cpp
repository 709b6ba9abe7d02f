// sdpa, sdpa_f16 and sdpa_bf16 by hand: what they take, and everything else refused before it runs.
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>

#include "core/packed_launch.h"
#include "shaders/sdpa_params.h"
#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

constexpr std::uint32_t kHuge = std::numeric_limits<std::uint32_t>::max();
constexpr std::array<const char*, 3> kKernels{"sdpa", "sdpa_f16", "sdpa_bf16"};

InlineBytes bytes_of_params(const SdpaParamsBlock& params) {
  InlineBytes bytes(sizeof(params));
  std::memcpy(bytes.data(), &params, sizeof(params));
  return bytes;
}

/// Two sequences of two heads that share one KV head, 33 rows, 5 keys of 8 elements. The output
/// stands in the middle of a larger buffer.
struct Launch {
  Launch(const Device& device, const char* kernel)
      : dtype(*packed_kernel_dtype(kernel)),
        pipeline(KernelRegistry(device).get_pipeline(kernel)),
        q(device.empty({2 * 2 * 33 * 8}, dtype)),
        k(device.empty({2 * 5 * 8}, dtype)),
        v(device.empty({2 * 5 * 8}, dtype)),
        arena(device.empty({3 * 2 * 2 * 33 * 8}, dtype)),
        out(arena.slice_view(2 * 2 * 33 * 8 * dtype_size(dtype), 2 * 2 * 33 * 8)) {
    fill_bytes(arena, 0xff);
  }

  std::vector<Binding> bindings() const {
    return {{0, q}, {1, k}, {2, v}, {3, out}, {4, bytes_of_params(params)}};
  }

  void run(const std::vector<Binding>& bound) const {
    CommandEncoder encoder(device());
    encoder.encode_threadgroups(pipeline, bound, grid, size);
    encoder.commit_and_wait();
  }
  void run() const { run(bindings()); }

  Device device() const { return Device(device_kind_name(kind)); }

  DType dtype;
  std::shared_ptr<Pipeline> pipeline;
  Buffer q, k, v, arena, out;
  DeviceKind kind = DeviceKind::cpu;
  SdpaParamsBlock params{2, 1, 8, 33, 5, 1.0f, 5, 1};
  GridSize grid{2, 2, 2};
  GridSize size{SDPA_TILE_Q, 1, 1};
};

struct Refusal {
  const char* what;
  const char* word;  ///< in the error's text
  std::function<void(Launch&)> change;
};

const std::vector<Refusal>& bad_parameters() {
  static const std::vector<Refusal> refusals{
      {"more heads in the grid", "threadgroups: y 3", [](Launch& x) { x.grid.y = 3; }},
      {"far more heads", "threadgroups: y", [](Launch& x) { x.grid.y = 1u << 30; }},
      {"more sequences", "buffer 0 (q)", [](Launch& x) { x.grid.x = 3; }},
      {"far more sequences", "buffer 0 (q)", [](Launch& x) { x.grid.x = kHuge; }},
      {"more tiles of rows", "threadgroups: z 3", [](Launch& x) { x.grid.z = 3; }},
      {"no rows", "threadgroups: z 2", [](Launch& x) { x.params.seq_len = 0; }},
      {"more rows", "buffer 0 (q)", [](Launch& x) { x.params.seq_len = 34; }},
      {"longer cache", "buffer 1 (k)", [](Launch& x) { x.params.kv_capacity = 6; }},
      {"keys past the cache", "kv_seq_len 6", [](Launch& x) { x.params.kv_seq_len = 6; }},
      {"no heads", "n_heads 0", [](Launch& x) { x.params.n_heads = 0; }},
      {"no KV heads", "n_kv_heads 0", [](Launch& x) { x.params.n_kv_heads = 0; }},
      {"uneven groups", "n_kv_heads 3", [](Launch& x) { x.params.n_kv_heads = 3; }},
      {"more KV heads", "n_kv_heads 4", [](Launch& x) { x.params.n_kv_heads = 4; }},
      {"no width", "head_dim 0", [](Launch& x) { x.params.head_dim = 0; }},
      {"too wide", "head_dim 1025", [](Launch& x) { x.params.head_dim = 1025; }},
      {"scale NaN", "scale", [](Launch& x) { x.params.scale = NAN; }},
      {"scale inf", "scale", [](Launch& x) { x.params.scale = INFINITY; }},
      // 2^20 * 2^31 * 2^10 * 4 and 2^31 * 2^20 * 2^10 * 8 bytes are 0 and 8 modulo 2^64
      {"q wraps", "64 bits",
       [](Launch& x) {
         x.params = {1u << 20, 1u << 20, 512, 1u << 31, 5, 1.0f, 5, 0};
         x.grid = {8, 1, 1};
       }},
      {"k wraps", "64 bits",
       [](Launch& x) {
         x.params = {1u << 25, 1u << 25, 512, 1, 5, 1.0f, 1u << 31, 0};
         x.grid = {1, 1, 1};
       }},
      {"everything at its largest", "n_kv_heads",
       [](Launch& x) { x.params = {kHuge, kHuge - 1, kHuge, kHuge, kHuge, 1.0f, kHuge, kHuge}; }},
  };
  return refusals;
}

/// Of faults that are seen with the parameters: the CPU's kernel reads them when it runs.
ErrorCode code_of_parameters(const Launch& x) {
  return x.kind == DeviceKind::cpu ? ErrorCode::command_buffer : ErrorCode::invalid_argument;
}

const std::vector<Refusal>& bad_bindings() {
  static const std::vector<Refusal> refusals{
      {"short q", "buffer 0 (q)",
       [](Launch& x) { x.q = x.q.slice_view(0, x.q.element_count() - 1); }},
      {"short k", "buffer 1 (k)",
       [](Launch& x) { x.k = x.k.slice_view(0, x.k.element_count() - 1); }},
      {"short v", "buffer 2 (v)",
       [](Launch& x) { x.v = x.v.slice_view(0, x.v.element_count() - 1); }},
      {"short output", "buffer 3 (output)",
       [](Launch& x) { x.out = x.out.slice_view(0, x.out.element_count() - 1); }},
      {"output over q", "overlaps buffer 0 (q)", [](Launch& x) { x.q = x.out; }},
      {"output over the end of k", "overlaps buffer 1 (k)",
       [](Launch& x) { x.k = x.arena.slice_view(2 * 2 * 33 * 8 * dtype_size(x.dtype) - 8, 80); }},
      {"output over v", "overlaps buffer 2 (v)",
       [](Launch& x) { x.v = x.out.slice_view(512, 100); }},
  };
  return refusals;
}

/// Calls `check` for every device and element type.
void for_each_launch(const std::function<void(Launch&)>& check) {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    for (const char* kernel : kKernels) {
      Launch launch(device, kernel);
      launch.kind = device.kind();
      INFO(kernel, " on ", kind);
      check(launch);
    }
  }
}

void check_refused(const Launch& x, const std::vector<Binding>& bindings, const char* word,
                   ErrorCode code = ErrorCode::invalid_argument) {
  CHECK(error_of([&] { x.run(bindings); }, word) == code);
  for (const std::uint8_t byte : bytes_of(x.arena)) {
    if (byte == 0xff) continue;
    FAIL_CHECK("written although refused");
    break;
  }
}

}  // namespace

TEST_CASE("the packed form of sdpa takes its 32-byte block at buffer 4") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    const KernelRegistry registry(device);
    std::mt19937 rng(2);
    const Buffer q = device.empty({2, 4, 33, 8}, DType::f32);
    const Buffer k = device.empty({2, 2, 50, 8}, DType::f32);
    const Buffer v = device.empty({2, 2, 50, 8}, DType::f32);
    const Buffer by_hand = device.empty({2, 4, 33, 8}, DType::f32);
    const Buffer by_call = device.empty({2, 4, 33, 8}, DType::f32);
    for (const Buffer& buffer : {q, k, v}) fill_normal(buffer, rng, 1);
    const SdpaParamsBlock block{4, 2, 8, 33, 45, 0.3f, 50, 1};
    const Buffer in_memory = device.empty({8}, DType::u32);
    std::memcpy(in_memory.data(), &block, sizeof(block));

    SdpaProblem p;
    p.batch = 2;
    p.n_heads = 4;
    p.n_kv_heads = 2;
    p.seq_len = 33;
    p.kv_capacity = 50;
    p.kv_len = 45;
    p.head_dim = p.value_dim = 8;
    p.scale = 0.3f;
    p.causal = true;
    p.kernel = "sdpa";
    p.set_packed_layouts();
    sdpa(device, {q, k, v, by_call, {}}, p);
    for (const Binding& params : {Binding{4, bytes_of_params(block)}, Binding{4, in_memory}}) {
      fill_bytes(by_hand, 0xff);
      CommandEncoder encoder(device);
      encoder.encode_threadgroups(registry.get_pipeline("sdpa"),
                                  {{0, q}, {1, k}, {2, v}, {3, by_hand}, params}, {2, 4, 2},
                                  {SDPA_TILE_Q, 1, 1});
      encoder.commit_and_wait();
      CHECK(bytes_of(by_hand) == bytes_of(by_call));
    }
  }
}

TEST_CASE("a launch by hand that fits runs, and writes its output alone") {
  for_each_launch([](Launch& x) {
    x.run();
    const std::size_t out_bytes = x.out.byte_len();
    const std::vector<std::uint8_t> bytes = bytes_of(x.arena);
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      // the inputs are 0, and so is the result
      const std::uint8_t want = i >= out_bytes && i < 2 * out_bytes ? 0 : 0xff;
      if (bytes[i] == want) continue;
      FAIL_CHECK("byte ", i);
      return;
    }
  });
}

TEST_CASE("parameters and grids that do not fit the memory are refused") {
  for (const Refusal& refusal : bad_parameters()) {
    INFO(refusal.what);
    for_each_launch([&](Launch& x) {
      refusal.change(x);
      check_refused(x, x.bindings(), refusal.word, code_of_parameters(x));
    });
  }
}

TEST_CASE("bindings that do not fit the parameters are refused") {
  for (const Refusal& refusal : bad_bindings()) {
    INFO(refusal.what);
    for_each_launch([&](Launch& x) {
      refusal.change(x);
      check_refused(x, x.bindings(), refusal.word, code_of_parameters(x));
    });
  }
}

TEST_CASE("threadgroups of another size are refused when encoded") {
  for_each_launch([](Launch& x) {
    for (const GridSize& size : {GridSize{16, 1, 1}, GridSize{64, 1, 1}, GridSize{32, 2, 1}}) {
      x.size = size;
      check_refused(x, x.bindings(), "threadgroup_size");
    }
  });
}

TEST_CASE("every one of the five bindings is needed, and no other is taken") {
  for_each_launch([](Launch& x) {
    for (std::size_t missing = 0; missing < 5; ++missing) {
      std::vector<Binding> bindings = x.bindings();
      bindings.erase(bindings.begin() + static_cast<std::ptrdiff_t>(missing));
      check_refused(x, bindings, "is missing");
    }
    // buffer 5 holds the internal block of plans
    std::vector<Binding> bindings = x.bindings();
    bindings.push_back({5, InlineBytes(208)});
    check_refused(x, bindings, "takes buffers 0 to 4");
  });
}

TEST_CASE("the general form of a kernel, which reads an internal block, is not for hands") {
  for_each_launch([](Launch& x) {
    const KernelRegistry registry(x.device());
    for (std::uint32_t constant = 0; constant < 3; ++constant) {
      x.pipeline = registry.get_pipeline(pipeline_name(*x.pipeline), {{constant, true}});
      check_refused(x, x.bindings(), "constants are internal");
    }
  });
}

TEST_CASE("places that elements cannot start at, read-only and inline outputs, short blocks") {
  for_each_launch([](Launch& x) {
    const Device device = x.device();
    const Buffer bytes = device.empty({4096}, DType::u8);
    const auto bytes_at = [&](std::size_t offset) {
      return bytes.slice_view(offset, 2 * 5 * 8 * dtype_size(x.dtype));
    };
    std::vector<Binding> bindings = x.bindings();
    bindings[1].value = bytes_at(1);
    check_refused(x, bindings, "buffer 1 (k): starts off");

    bindings = x.bindings();
    bindings[4].value = bytes.slice_view(2, 32);
    check_refused(x, bindings, "buffer 4 (parameters): starts off");
    bindings[4].value = bytes.slice_view(0, 31);
    check_refused(x, bindings, "buffer 4 (parameters): 31 bytes");
    bindings[4].value = InlineBytes(31);
    check_refused(x, bindings, "buffer 4 (parameters): 31 bytes");

    bindings = x.bindings();
    bindings[3].value = InlineBytes(x.out.byte_len() > 4096 ? 4096 : x.out.byte_len());
    check_refused(x, bindings, "is inline bytes");
  });
  alignas(128) static float memory[64] = {};
  const Device device("cpu");
  Launch x(device, "sdpa");
  x.out = device.wrap({memory, sizeof(memory), true, nullptr}, DType::f32, {64});
  check_refused(x, x.bindings(), "is read-only");
}

TEST_CASE("parameters in a buffer are checked as they are when the cpu's kernel runs") {
  for (const Refusal& refusal : bad_parameters()) {
    INFO(refusal.what);
    for (const char* kernel : kKernels) {
      const Device device("cpu");
      Launch x(device, kernel);
      const Buffer block = device.empty({8}, DType::u32);
      std::memcpy(block.data(), &x.params, sizeof(x.params));
      refusal.change(x);
      std::vector<Binding> bindings = x.bindings();
      bindings[4].value = block;
      CommandEncoder encoder(device);
      encoder.encode_threadgroups(x.pipeline, bindings, x.grid, x.size);
      std::memcpy(block.data(), &x.params, sizeof(x.params));
      CHECK(error_of([&] { encoder.commit_and_wait(); }, refusal.word) ==
            ErrorCode::command_buffer);
      for (const std::uint8_t byte : bytes_of(x.arena)) {
        if (byte == 0xff) continue;
        FAIL_CHECK("written although refused");
        break;
      }
      CommandEncoder next(device);
      next.commit_and_wait();
    }
  }
}

TEST_CASE("an output over the parameters in a buffer is refused when the cpu's kernel runs") {
  const Device device("cpu");
  Launch x(device, "sdpa");
  std::vector<Binding> bindings = x.bindings();
  const Buffer inside = x.out.slice_view(64, 8);
  std::memcpy(inside.data(), &x.params, sizeof(x.params));
  bindings[4].value = inside;
  CommandEncoder encoder(device);
  encoder.encode_threadgroups(x.pipeline, bindings, x.grid, x.size);
  CHECK(error_of([&] { encoder.commit_and_wait(); }, "overlaps buffer 4 (parameters)") ==
        ErrorCode::command_buffer);
}

TEST_CASE("sizes are counted without overflow for any parameters") {
  std::mt19937_64 rng(5);
  const auto number = [&rng]() -> std::uint32_t {
    constexpr std::uint32_t kEdges[] = {0,   1,        2,        3,        4,       8,
                                        512, 1u << 16, 1u << 20, 1u << 30, 1u << 31};
    if (rng() % 3 == 0) return static_cast<std::uint32_t>(rng()) >> (rng() % 32);
    return kEdges[rng() % std::size(kEdges)] - (rng() % 8 == 0 ? 1 : 0);
  };
  int accepted = 0;
  for (int round = 0; round < 200000; ++round) {
    const SdpaParamsBlock params{number(), number(), number(), number(),
                                 number(), 1.0f,     number(), 0};
    PackedLaunch launch;
    launch.element_size = rng() % 2 == 0 ? 2 : 4;
    launch.max_head_dim = 1024;
    launch.threadgroups = {number(), number(), number()};
    const std::uint64_t byte_len = std::uint64_t{1} << (rng() % 40);
    for (std::size_t i = 0; i < launch.buffers.size(); ++i) {
      launch.buffers[i] = {(i + 1) << 50, byte_len};
    }
    launch.buffers[4].byte_len = 32;
    // In long double every product keeps its size to 64 bits, so none wraps.
    const long double row = static_cast<long double>(params.head_dim) * launch.element_size;
    const long double q = row * launch.threadgroups.x * params.n_heads * params.seq_len;
    const long double kv = row * launch.threadgroups.x * params.n_kv_heads * params.kv_capacity;
    const bool fits = params.n_heads > 0 && params.n_kv_heads > 0 &&
                      params.n_heads % params.n_kv_heads == 0 && params.head_dim > 0 &&
                      params.head_dim <= 1024 && params.kv_seq_len <= params.kv_capacity &&
                      launch.threadgroups.y <= params.n_heads &&
                      (launch.threadgroups.z == 0 ||
                       (launch.threadgroups.z - 1.0L) * SDPA_TILE_Q < params.seq_len) &&
                      q <= byte_len && kv <= byte_len;
    accepted += fits ? 1 : 0;
    if (packed_launch_fault(launch, params).empty() == fits) continue;
    FAIL("round ", round, ": ", packed_launch_fault(launch, params));
  }
  CHECK(accepted > 100);
}
