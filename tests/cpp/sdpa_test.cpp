// The attention kernels against the float64 oracle, on every device of the build.
#include <cmath>
#include <cstring>
#include <limits>

#include "oracle.h"
#include "problems.h"
#include "shaders/sdpa_args.h"
#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

/// Problems per device: the sweeps of the Python suite run many more.
int rounds_for(const Device& device) { return device.kind() == DeviceKind::cpu ? 300 : 40; }

SdpaProblem small_problem() {
  SdpaProblem p;
  p.n_heads = 4;
  p.n_kv_heads = 2;
  p.seq_len = 5;
  p.kv_capacity = 40;
  p.kv_len = 33;
  p.head_dim = 16;
  p.value_dim = 16;
  p.scale = 0.25f;
  p.causal = true;
  p.set_packed_layouts();
  return p;
}

/// Strides of the layouts that have one entry on an axis, at both ends of 64 bits.
SdpaProblem with_unused_strides(SdpaProblem p, std::int64_t stride) {
  p.q.batch_stride = p.k.batch_stride = p.v.batch_stride = p.out.batch_stride = stride;
  if (p.n_heads == 1) p.q.head_stride = p.out.head_stride = stride;
  if (p.n_kv_heads == 1) p.k.head_stride = p.v.head_stride = stride;
  if (p.seq_len == 1) p.q.row_stride = p.out.row_stride = stride;
  if (p.kv_capacity == 1) p.k.row_stride = p.v.row_stride = stride;
  return p;
}

void check_strides_within(const SdpaStrides& strides, std::int64_t limit) {
  for (const std::int64_t stride : {strides.batch, strides.head, strides.row}) {
    CHECK(stride >= -limit);
    CHECK(stride <= limit);
  }
}

/// No step's kernel gets to see a stride that reaches out of the memory.
void check_strides_of_plan(const Plan& plan, std::int64_t limit) {
  for (const PlanStep& step : plan.steps) {
    SdpaArgs args;
    REQUIRE(step.args.bytes.size() == sizeof(args));
    std::memcpy(&args, step.args.bytes.begin(), sizeof(args));
    for (const SdpaStrides& strides :
         {args.q_stride, args.k_stride, args.v_stride, args.out_stride}) {
      check_strides_within(strides, limit);
    }
  }
}

}  // namespace

TEST_CASE("random problems are within the bounds, for the planner's choice and for sdpa") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    std::mt19937 rng(20240607);
    for (int round = 0; round < rounds_for(device); ++round) {
      SdpaProblem problem = random_problem(rng, limits_for(device));
      const SdpaOperands x = random_operands(rng, device, problem);
      const Reference reference = reference_sdpa(problem, x);
      for (const char* kernel : {"", "sdpa"}) {
        problem.kernel = kernel;
        fill_bytes(x.out, 0xff);
        sdpa(device, x, problem);
        INFO(kind, " round ", round, " kernel '", kernel, "' dtype ", dtype_name(problem.dtype));
        REQUIRE(worst_error(problem, x, reference) <= 1.0);
      }
    }
  }
}

TEST_CASE("long rows stay within the bounds: constant values, equal scores, many spans") {
  const Device device("cpu");
  std::mt19937 rng(3);
  for (const std::int64_t length : {2047, 2048, 2049, 4097, 70000}) {
    SdpaProblem p;
    p.kv_capacity = p.kv_len = length;
    p.head_dim = 8;
    p.value_dim = 3;
    p.scale = 1;
    p.return_lse = true;
    p.set_packed_layouts();
    const SdpaOperands x = poisoned_operands(device, p);
    fill_bytes(x.q, 0);
    fill_normal(x.k, rng, 1);
    for (const float value : {0.1f, 1.0f / 3, 1e-3f}) {
      for (std::size_t i = 0; i < x.v.element_count(); ++i) set_element(x.v, i, value);
      const Reference reference = reference_sdpa(p, x);
      for (const char* kernel : {"", "sdpa"}) {
        p.kernel = kernel;
        sdpa(device, x, p);
        INFO("S ", length, " value ", value, " kernel '", kernel, "'");
        CHECK(worst_error(p, x, reference) <= 1.0);
      }
    }
  }
}

TEST_CASE("future keys and slots past kv_len never reach the output") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    std::mt19937 rng(5);
    SdpaProblem p = small_problem();
    const SdpaOperands x = random_operands(rng, device, p);
    sdpa(device, x, p);
    const std::vector<std::uint8_t> before = bytes_of(x.out);
    for (std::int64_t h = 0; h < 2; ++h) {
      for (std::int64_t j = p.kv_len; j < p.kv_capacity; ++j) {
        for (std::int64_t d = 0; d < 16; ++d) {
          set_element(x.k, static_cast<std::size_t>((h * 40 + j) * 16 + d), 1e30f);
          set_element(x.v, static_cast<std::size_t>((h * 40 + j) * 16 + d), INFINITY);
        }
      }
    }
    sdpa(device, x, p);
    CHECK(bytes_of(x.out) == before);
    // The last key is visible to the last query only.
    for (std::int64_t d = 0; d < 16; ++d) {
      set_element(x.v, static_cast<std::size_t>(32 * 16 + d), 100.0f);
    }
    sdpa(device, x, p);
    const std::vector<std::uint8_t> after = bytes_of(x.out);
    const std::size_t row_bytes = 16 * 4;
    CHECK(std::equal(before.begin(), before.begin() + 4 * row_bytes, after.begin()));
    CHECK(!std::equal(before.begin() + 4 * row_bytes, before.begin() + 5 * row_bytes,
                      after.begin() + 4 * row_bytes));
  }
}

TEST_CASE("rows without a visible key are 0 with lse -inf") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    std::mt19937 rng(6);
    SdpaProblem p = small_problem();
    p.return_lse = true;
    p.kv_len = 2;  // queries 0 to 2 of 5 stand before key 0
    const SdpaOperands x = random_operands(rng, device, p);
    sdpa(device, x, p);
    for (std::size_t h = 0; h < 4; ++h) {
      for (std::size_t i = 0; i < 5; ++i) {
        const bool empty = i < 3;
        CHECK((x.lse.host<float>()[h * 5 + i] == -INFINITY) == empty);
        CHECK((get_element(x.out, (h * 5 + i) * 16) == 0) == empty);
      }
    }
    p.kv_len = 0;
    fill_bytes(x.out, 0xff);
    sdpa(device, x, p);
    for (std::size_t i = 0; i < x.out.element_count(); ++i) CHECK(get_element(x.out, i) == 0);
  }
}

TEST_CASE("NaN in a query or in a visible key gives NaN rows and nothing else") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      std::mt19937 rng(8);
      SdpaProblem p = small_problem();
      p.dtype = dtype;
      const SdpaOperands x = random_operands(rng, device, p);
      set_element(x.q, (1 * 5 + 2) * 16 + 7, NAN);    // head 1, row 2
      set_element(x.k, (1 * 40 + 31) * 16 + 3, NAN);  // KV head 1, key 31: rows 3 and 4
      sdpa(device, x, p);
      for (std::size_t h = 0; h < 4; ++h) {
        for (std::size_t i = 0; i < 5; ++i) {
          const bool nan_row = (h == 1 && i == 2) || (h >= 2 && i >= 3);
          for (std::size_t d = 0; d < 16; ++d) {
            CHECK(std::isnan(get_element(x.out, (h * 5 + i) * 16 + d)) == nan_row);
          }
        }
      }
    }
  }
}

TEST_CASE("bits do not depend on threads, batch, capacity or strides") {
  std::mt19937 rng(11);
  for (int round = 0; round < 60; ++round) {
    const Device one("cpu", {1, ""});
    const Device two("cpu", {2, ""});
    SdpaProblem p = random_problem(rng, {});
    p.kv_lengths.clear();
    p.q_starts.clear();
    const SdpaOperands x = random_operands(rng, one, p);
    sdpa(one, x, p);
    const std::vector<std::uint8_t> want = bytes_of(x.out);
    sdpa(two, x, p);
    INFO("round ", round);
    REQUIRE(bytes_of(x.out) == want);

    // The last sequence alone, packed, with a larger capacity.
    SdpaProblem alone = p;
    alone.batch = 1;
    alone.kv_capacity = p.kv_capacity + 37;
    alone.set_packed_layouts();
    const SdpaOperands y = poisoned_operands(one, alone);
    const auto copy_rows = [&](const Buffer& from, const TensorLayout& a, const Buffer& to,
                               const TensorLayout& b, std::int64_t heads, std::int64_t rows,
                               std::int64_t width) {
      for (std::int64_t h = 0; h < heads; ++h) {
        for (std::int64_t i = 0; i < rows; ++i) {
          for (std::int64_t d = 0; d < width; ++d) {
            const std::int64_t source = a.offset + (p.batch - 1) * a.batch_stride +
                                        h * a.head_stride + i * a.row_stride + d;
            const std::int64_t target = b.offset + h * b.head_stride + i * b.row_stride + d;
            set_element(to, static_cast<std::size_t>(target),
                        get_element(from, static_cast<std::size_t>(source)));
          }
        }
      }
    };
    copy_rows(x.q, p.q, y.q, alone.q, p.n_heads, p.seq_len, p.head_dim);
    copy_rows(x.k, p.k, y.k, alone.k, p.n_kv_heads, p.kv_len, p.head_dim);
    copy_rows(x.v, p.v, y.v, alone.v, p.n_kv_heads, p.kv_len, p.value_dim);
    sdpa(two, y, alone);
    for (std::int64_t h = 0; h < p.n_heads; ++h) {
      for (std::int64_t i = 0; i < p.seq_len; ++i) {
        for (std::int64_t d = 0; d < p.value_dim; ++d) {
          const std::int64_t source = p.out.offset + (p.batch - 1) * p.out.batch_stride +
                                      h * p.out.head_stride + i * p.out.row_stride + d;
          const std::int64_t target =
              alone.out.offset + h * alone.out.head_stride + i * alone.out.row_stride + d;
          const float a = get_element(x.out, static_cast<std::size_t>(source));
          const float b = get_element(y.out, static_cast<std::size_t>(target));
          REQUIRE(std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b));
        }
      }
    }
  }
}

TEST_CASE("a stride that no second entry uses may be any number") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    std::mt19937 rng(31);
    for (const std::int64_t seq_len : {1, 9}) {
      for (const std::int64_t keys : {1, 40}) {
        SdpaProblem packed = small_problem();
        packed.n_heads = packed.n_kv_heads = 1;
        packed.seq_len = seq_len;
        packed.kv_capacity = packed.kv_len = keys;
        packed.set_packed_layouts();
        const SdpaOperands x = random_operands(rng, device, packed);
        const std::int64_t elements = 40 * 16;
        for (const char* kernel : {"", "sdpa"}) {
          packed.kernel = kernel;
          sdpa(device, x, packed);
          const auto want = bytes_of(x.out);
          for (const std::int64_t stride : {INT64_MAX, INT64_MIN, std::int64_t{-1}}) {
            const SdpaProblem odd = with_unused_strides(packed, stride);
            check_strides_of_plan(plan_sdpa(device, odd), elements);
            fill_bytes(x.out, 0xff);
            sdpa(device, x, odd);
            CHECK(bytes_of(x.out) == want);
          }
        }
      }
    }
  }
}

TEST_CASE("packed layouts past 64 bits are refused, whatever their product leaves") {
  const Device device("cpu");
  SdpaProblem p = small_problem();
  p.batch = p.n_heads = p.n_kv_heads = INT32_MAX;
  p.seq_len = p.kv_capacity = INT32_MAX;
  p.head_dim = p.value_dim = 1024;
  p.set_packed_layouts();
  CHECK(p.q.head_stride == std::int64_t{INT32_MAX} * 1024);
  CHECK(p.q.batch_stride == INT64_MAX);
  const Buffer x = device.empty({64}, DType::f32);
  CHECK(error_of([&] { sdpa(device, {x, x, x, x, {}}, p); }, "64 bits") ==
        ErrorCode::invalid_argument);
}
