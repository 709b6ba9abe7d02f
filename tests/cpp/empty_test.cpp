// Problems of size zero: B, L or S of 0.
#include <cmath>

#include "problems.h"
#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

struct Sizes {
  std::int64_t batch, seq_len, kv_capacity;
};

constexpr Sizes kSizes[] = {{0, 3, 5}, {2, 0, 5}, {2, 3, 0}, {0, 0, 5},
                            {0, 3, 0}, {2, 0, 0}, {0, 0, 0}};

SdpaProblem problem_of(const Sizes& sizes, DType dtype, std::int64_t head_dim) {
  SdpaProblem p;
  p.dtype = dtype;
  p.batch = sizes.batch;
  p.n_heads = 4;
  p.n_kv_heads = 2;
  p.seq_len = sizes.seq_len;
  p.kv_capacity = p.kv_len = sizes.kv_capacity;
  p.head_dim = p.value_dim = head_dim;
  p.return_lse = true;
  p.set_packed_layouts();
  return p;
}

/// Memory for the tensors that have elements, of a pattern; the others have no Buffer.
SdpaOperands operands_of(const Device& device, const SdpaProblem& p) {
  const auto tensor = [&](std::int64_t heads, std::int64_t rows, std::int64_t width, DType dtype) {
    if (p.batch == 0 || rows == 0) return Buffer();
    Buffer made = device.empty({p.batch, heads, rows, width}, dtype);
    fill_bytes(made, 0x3c);
    return made;
  };
  return {tensor(p.n_heads, p.seq_len, p.head_dim, p.dtype),
          tensor(p.n_kv_heads, p.kv_capacity, p.head_dim, p.dtype),
          tensor(p.n_kv_heads, p.kv_capacity, p.value_dim, p.dtype),
          tensor(p.n_heads, p.seq_len, p.value_dim, p.dtype),
          tensor(p.n_heads, p.seq_len, 1, DType::f32)};
}

void check_rows_that_saw_nothing(const SdpaOperands& x) {
  if (!x.out.valid()) return;
  for (std::size_t i = 0; i < x.out.element_count(); ++i) REQUIRE(get_element(x.out, i) == 0.0f);
  for (std::size_t i = 0; i < x.lse.element_count(); ++i) {
    REQUIRE(get_element(x.lse, i) == -INFINITY);
  }
}

/// Every problem of size zero: dtypes, causal or not, head dims with and without fast kernels, the
/// planner's kernel and each that may be forced.
void for_each_problem(const Device& device, const std::function<void(const SdpaProblem&)>& run) {
  for (const Sizes& sizes : kSizes) {
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      for (const std::int64_t head_dim : {7, 64}) {
        for (const char* kernel : {"", "sdpa", "sdpa_decode", "sdpa_prefill"}) {
          SdpaProblem p = problem_of(sizes, dtype, head_dim);
          p.kernel = kernel;
          p.causal = head_dim == 64;
          const bool forced_tile = device.kind() == DeviceKind::metal && head_dim % 8 != 0 &&
                                   p.kernel != "" && p.kernel != "sdpa";
          if (!forced_tile) run(p);  // Metal has no tile kernel of such a head dim
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("rows without keys are 0 with lse -inf, and no rows are nothing to run") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    for_each_problem(device, [&](const SdpaProblem& p) {
      const SdpaOperands x = operands_of(device, p);
      const bool nothing = p.batch == 0 || p.seq_len == 0;
      REQUIRE(plan_sdpa(device, p).steps.empty() == nothing);
      sdpa(device, x, p);
      check_rows_that_saw_nothing(x);
    });
  }
}

TEST_CASE("an encoder takes them, and a graph too") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    const KernelRegistry registry(device);
    for_each_problem(device, [&](const SdpaProblem& p) {
      const SdpaOperands direct = operands_of(device, p);
      CommandEncoder encoder(device);
      encode_sdpa(encoder, registry, device, direct, p);
      encoder.commit_and_wait();
      check_rows_that_saw_nothing(direct);

      const SdpaOperands replayed = operands_of(device, p);
      CommandEncoder recording(device);
      recording.begin_capture();
      encode_sdpa(recording, registry, device, replayed, p);
      const Graph graph = recording.end_capture();
      REQUIRE(graph.nodes().size() == 1);
      graph.replay(recording);
      recording.commit_and_wait();
      check_rows_that_saw_nothing(replayed);
    });
  }
}

TEST_CASE("lengths of their own, and memory that is given all the same") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    SdpaProblem p = problem_of({2, 3, 0}, DType::f32, 8);
    p.kv_lengths = {0, 0};
    p.q_starts = {5, -7};
    SdpaOperands x = operands_of(device, p);
    x.k = x.v = device.empty({1}, DType::f32);
    sdpa(device, x, p);
    check_rows_that_saw_nothing(x);
    x.k = device.empty({1}, DType::f16);
    CHECK(error_of([&] { sdpa(device, x, p); }, "k: dtype f16") == ErrorCode::unsupported_dtype);
    p.kv_lengths = {0, 1};
    CHECK(error_of([&] { sdpa(device, x, p); }, "takes 0 to the 0 rows") ==
          ErrorCode::invalid_argument);
  }
}

TEST_CASE("what must not be zero, and memory that must be there") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    const auto refuse = [&](const std::string& word, std::int64_t SdpaProblem::* field) {
      SdpaProblem p = problem_of({2, 3, 5}, DType::f32, 8);
      const SdpaOperands x = operands_of(device, p);
      p.*field = 0;
      CHECK(error_of([&] { sdpa(device, x, p); }, word) == ErrorCode::invalid_argument);
    };
    refuse("n_heads: 0", &SdpaProblem::n_heads);
    refuse("n_kv_heads: 0", &SdpaProblem::n_kv_heads);
    refuse("head_dim: 0", &SdpaProblem::head_dim);
    refuse("value_dim: 0", &SdpaProblem::value_dim);
    const SdpaProblem p = problem_of({2, 3, 0}, DType::f32, 8);
    SdpaOperands x = operands_of(device, p);
    x.out = Buffer();
    CHECK(error_of([&] { sdpa(device, x, p); }, "output: the buffer is empty") ==
          ErrorCode::invalid_argument);
  }
}
