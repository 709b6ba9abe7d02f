// What is refused of masks, windows, numbers a head, and lengths, before anything is written.
#include <cmath>
#include <limits>

#include "core/validation.h"
#include "problems.h"
#include "support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min();

/// B 2, Hq 4, Hkv 2, L 3, S 6, D and Dv 8, with memory for everything a problem can have.
struct Fixture {
  Fixture() : device("cpu") {
    problem.batch = 2;
    problem.n_heads = 4;
    problem.n_kv_heads = 2;
    problem.seq_len = 3;
    problem.kv_capacity = problem.kv_len = 6;
    problem.head_dim = problem.value_dim = 8;
    problem.set_packed_layouts();
    operands.q = device.empty({2, 4, 3, 8}, DType::f32);
    operands.k = device.empty({2, 2, 6, 8}, DType::f32);
    operands.v = device.empty({2, 2, 6, 8}, DType::f32);
    operands.out = device.empty({2, 4, 3, 8}, DType::f32);
    operands.mask = device.empty({2, 4, 3, 6}, DType::u8);
    operands.sinks = device.empty({4}, DType::f32);
    operands.alibi_slopes = device.empty({2, 4}, DType::f32);
  }

  void add_mask() { problem.mask = MaskLayout{DType::u8, 0, 72, 18, 6, 1}; }

  void validate() const {
    validate_problem(problem, device.limits(), "sdpa");
    validate_operands(problem, operands, *device.backend(), "sdpa");
  }

  ErrorCode refusal(const std::string& word) const {
    return error_of([this] { validate(); }, word);
  }

  Device device;
  SdpaProblem problem;
  SdpaOperands operands;
};

void set(const Buffer& buffer, std::size_t index, float value) {
  static_cast<float*>(buffer.data())[index] = value;
}

}  // namespace

TEST_CASE_FIXTURE(Fixture, "sides of a window are -1 or more") {
  for (const std::int64_t side : {std::int64_t{-1}, std::int64_t{0}, std::int64_t{7}, kMost}) {
    problem.window_left = problem.window_right = side;
    validate();
  }
  problem.window_left = -2;
  CHECK(refusal("window: left -2") == ErrorCode::invalid_argument);
  problem.window_left = 0;
  problem.window_right = kLeast;
  CHECK(refusal("window: right") == ErrorCode::invalid_argument);
}

TEST_CASE_FIXTURE(Fixture, "starts and row counts lie within k and q") {
  for (const std::int64_t start : {0, 6}) {
    problem.kv_start = start;
    validate();
  }
  problem.kv_start = 7;
  CHECK(refusal("kv_starts: 7, takes 0 to the 6 rows of k") == ErrorCode::invalid_argument);
  problem.kv_start = 0;
  problem.kv_starts = {0, -1};
  CHECK(refusal("kv_starts: -1") == ErrorCode::invalid_argument);
  problem.kv_starts = {0};
  CHECK(refusal("kv_starts: 1 entries") == ErrorCode::invalid_argument);
  problem.kv_starts.clear();
  for (const std::int64_t rows : {0, 3}) {
    problem.query_len = rows;
    validate();
  }
  problem.query_len = 4;
  CHECK(refusal("query_lengths: 4, takes 0 to the 3 rows of q") == ErrorCode::invalid_argument);
  problem.query_len.reset();
  problem.query_lengths = {1, 2, 3};
  CHECK(refusal("query_lengths: 3 entries") == ErrorCode::invalid_argument);
}

TEST_CASE_FIXTURE(Fixture, "sharded keys want a query's position and stay within 2^60") {
  constexpr std::int64_t kFar = std::int64_t{1} << 60;
  problem.key_stride = 2;
  CHECK(refusal("q_start: is not given") == ErrorCode::invalid_argument);
  problem.q_start = 4;
  validate();
  problem.key_stride = 0;
  CHECK(refusal("key_stride: 0") == ErrorCode::invalid_argument);
  problem.key_stride = kFar / 6 + 1;
  CHECK(refusal("key_stride") == ErrorCode::invalid_argument);
  problem.key_stride = 1;
  for (const std::int64_t offset : {kFar, -kFar}) {
    problem.key_offset = offset;
    validate();
  }
  problem.key_offset = kFar + 1;
  CHECK(refusal("key_offset") == ErrorCode::invalid_argument);
  problem.key_offset = -kFar - 1;
  CHECK(refusal("key_offset") == ErrorCode::invalid_argument);
}

TEST_CASE_FIXTURE(Fixture, "a softcap is finite and positive, or 0 for none") {
  for (const float cap : {0.0f, 1e-30f, 50.0f, 3e38f}) {
    problem.softcap = cap;
    validate();
  }
  for (const float cap : {-1.0f, kInfinity, kNan}) {
    problem.softcap = cap;
    CHECK(refusal("softcap") == ErrorCode::invalid_argument);
  }
}

TEST_CASE_FIXTURE(Fixture, "a mask lies within its buffer whatever its strides are") {
  add_mask();
  validate();
  problem.mask = MaskLayout{DType::u8, 143, -72, -18, -6, -1};
  validate();
  problem.mask->offset = 142;
  CHECK(refusal("mask: elements -1 to 142") == ErrorCode::invalid_argument);
  problem.mask = MaskLayout{DType::u8, 1, 72, 18, 6, 1};
  CHECK(refusal("mask: elements 1 to 144") == ErrorCode::invalid_argument);
  problem.mask = MaskLayout{DType::u8, 143, 0, 0, 0, 0};
  validate();
  problem.mask->key_stride = 1;
  CHECK(refusal("mask: elements 143 to 148") == ErrorCode::invalid_argument);
  for (const std::int64_t stride : {kMost, kLeast, kMost / 4}) {
    problem.mask = MaskLayout{DType::u8, 0, 0, 0, 0, stride};
    CHECK(refusal("mask") == ErrorCode::invalid_argument);
    problem.mask = MaskLayout{DType::u8, 0, stride, 0, 0, 1};
    CHECK(refusal("mask") == ErrorCode::invalid_argument);
  }
}

TEST_CASE_FIXTURE(Fixture, "masks are u8 or of a floating-point type, and the buffer's own") {
  add_mask();
  problem.mask->dtype = DType::i32;
  CHECK(refusal("mask: dtype i32") == ErrorCode::unsupported_dtype);
  problem.mask->dtype = DType::f16;
  CHECK(refusal("mask: dtype u8, but its layout says f16") == ErrorCode::unsupported_dtype);
  operands.mask = {};
  CHECK(refusal("mask: the buffer is empty") == ErrorCode::invalid_argument);
}

TEST_CASE_FIXTURE(Fixture, "outputs overlap no input, the mask included") {
  operands.out = operands.mask = device.empty({2, 4, 3, 8}, DType::f32);
  problem.mask = MaskLayout{DType::f32, 0, 0, 0, 0, 1};
  CHECK(refusal("output: overlaps mask") == ErrorCode::invalid_argument);
  problem.mask->offset = 192 - 6;
  CHECK(refusal("output: overlaps mask") == ErrorCode::invalid_argument);
  problem.mask->offset = 0;
  operands.mask = device.empty({2, 4, 3, 6}, DType::f32);
  validate();
  operands.lse = operands.sinks = device.empty({24}, DType::f32);
  problem.return_lse = true;
  problem.sinks = HeadLayout{DType::f32, 20, 0, 1};
  CHECK(refusal("lse: overlaps sinks") == ErrorCode::invalid_argument);
  operands.out = operands.lse = device.empty({2, 4, 3, 8}, DType::f32);
  problem.sinks.reset();
  CHECK(refusal("lse: overlaps output") == ErrorCode::invalid_argument);
}

TEST_CASE_FIXTURE(Fixture, "sinks are finite or -inf, slopes finite") {
  problem.sinks = HeadLayout{};
  set(operands.sinks, 2, -kInfinity);
  validate();
  for (const float value : {kInfinity, kNan}) {
    set(operands.sinks, 2, value);
    CHECK(refusal("of head 2, takes finite numbers and -inf") == ErrorCode::invalid_argument);
  }
  problem.sinks.reset();
  problem.alibi_slopes = HeadLayout{DType::f32, 0, 4, 1};
  for (const float value : {kInfinity, -kInfinity, kNan}) {
    set(operands.alibi_slopes, 7, value);
    CHECK(refusal("of head 3, takes finite numbers") == ErrorCode::invalid_argument);
  }
  problem.alibi_slopes->batch_stride = 0;
  validate();  // only the first four are read
}

TEST_CASE_FIXTURE(Fixture, "numbers a head have the dtypes that kernels read, and lie in bounds") {
  problem.sinks = HeadLayout{DType::f16, 0, 0, 1};
  CHECK(refusal("sinks: dtype f16, takes f32 or q's dtype") == ErrorCode::unsupported_dtype);
  problem.sinks = HeadLayout{DType::f32, 1, 0, 1};
  CHECK(refusal("sinks: elements 1 to 4") == ErrorCode::invalid_argument);
  problem.sinks = HeadLayout{DType::f32, 0, 1, 1};
  CHECK(refusal("sinks: batch_stride: 1") == ErrorCode::invalid_argument);
  problem.sinks.reset();
  problem.alibi_slopes = HeadLayout{DType::f16, 0, 0, 1};
  CHECK(refusal("alibi_slopes: dtype f16, takes f32") == ErrorCode::unsupported_dtype);
}

TEST_CASE_FIXTURE(Fixture, "an output in f32 is as the problem says") {
  problem.dtype = DType::f16;
  for (Buffer* buffer : {&operands.q, &operands.k, &operands.v}) {
    *buffer = device.empty({2, 4, 6, 8}, DType::f16);
  }
  CHECK(refusal("output: dtype f32") == ErrorCode::unsupported_dtype);
  problem.out_f32 = true;
  validate();
}
