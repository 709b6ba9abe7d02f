// How sdpa_prefill's work is cut, and that it never shows in a result.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "core/registry.h"
#include "cpu/immediate.h"
#include "cpu/native_library.h"
#include "cpu_kernels.h"

using namespace metal_sdpa;
using namespace metal_sdpa::test;

namespace {

class NeverStop final : public StopToken {
 public:
  bool stop_requested() noexcept override { return false; }
};

/// The plan's one step with its memory: operands of `x`, scratch memory of its own.
class Launched {
 public:
  Launched(const Plan& plan, const SdpaOperands& x) : step_(plan.steps.front()), operands_(x) {
    const std::shared_ptr<Backend> backend = cpu_backend();
    // Vectors, since they end where a sanitizer sees it.
    for (const std::uint64_t bytes : plan.scratch_bytes) {
      std::vector<float>& memory = memory_.emplace_back(bytes / sizeof(float), NAN);
      const HostMemory host{memory.data(), bytes, false, {}};
      scratch_.push_back({bytes == 0 ? nullptr : backend->wrap_host(host), 0, bytes});
    }
  }

  std::uint64_t item_count() const { return step_.threadgroups.count(); }

  /// Runs the items one after the other in the order given.
  void run(NativeKernel kernel, const std::vector<std::uint64_t>& order) {
    const NativeLaunch launch = cpu::bind_step(step_, operands_, scratch_);
    NeverStop stop;
    for (const std::uint64_t item : order) kernel(launch, {item, item + 1}, stop);
  }

 private:
  const PlanStep& step_;
  const SdpaOperands& operands_;
  std::vector<std::vector<float>> memory_;
  ScratchList scratch_;
};

}  // namespace

TEST_CASE("the planner takes sdpa_prefill by name, for the instruction set of the device") {
  for (const std::string& isa : isas()) {
    const Plan plan = plan_sdpa(device_of(isa), prefill_problem(DType::f16, 4, 64, 64, 64, 64));
    CHECK(std::string(plan.steps.front().kernel) == "sdpa_prefill_f16." + isa);
    CHECK(plan.span_len <= 1024);
  }
}

TEST_CASE("an f32 output of bf16 takes no instruction set that rounds weights to bf16") {
  for (const std::string& isa : isas()) {
    SdpaProblem p = prefill_problem(DType::bf16, 4, 64, 64, 64, 64);
    p.out_f32 = true;
    const std::string kernel = plan_sdpa(device_of(isa), p).steps.front().kernel;
    const bool has_pairs = isa.find("amx") != isa.npos || isa.find("_bf16") != isa.npos;
    const std::string wanted = isa.rfind("neon", 0) == 0 ? "neon" : "avx512";
    CHECK(kernel == "sdpa_prefill_bf16." + (has_pairs ? wanted : isa));
  }
}

TEST_CASE("bits do not depend on how rows and spans are dealt out to items") {
  struct Shape {
    std::int64_t batch, kv_heads, group, rows, keys, q_start, head_dim, value_dim;
    std::vector<std::int64_t> kv_lengths, q_starts;
  };
  // Spans have 1024 keys, 512 of few rows. Row 95 of the first sees whole ones; rows of the second
  // see one span, two or none at all; the others see many spans.
  const std::vector<Shape> shapes{
      {1, 1, 1, 192, 2300, 2 * 1024 - 96, 8, 8, {}, {}},
      {2, 1, 1, 200, 1100, 0, 8, 8, {1100, 700}, {900, -50}},
      {1, 1, 1, 30, 2300, 2270, 8, 8, {}, {}},
      {3, 1, 1, 7, 2048, 3000, 8, 8, {0, 2048, 1024}, {}},
      {2, 2, 3, 5, 1500, 1495, 72, 40, {}, {}},
      {1, 2, 3, 20, 2600, 2100, 3, 17, {}, {}},
  };
  for (const std::string& isa : isas()) {
    for (const DType dtype : kDTypes) {
      for (const Shape& shape : shapes) {
        std::mt19937 rng(15);
        SdpaProblem p = prefill_problem(dtype, shape.group * shape.kv_heads, shape.rows, shape.keys,
                                        shape.head_dim, shape.value_dim);
        p.batch = shape.batch;
        p.n_kv_heads = shape.kv_heads;
        p.set_packed_layouts();
        p.causal = true;
        p.q_start = shape.q_start;
        p.kv_lengths = shape.kv_lengths;
        p.q_starts = shape.q_starts;
        const SdpaOperands x = random_operands(rng, device_of(isa), p);
        INFO(isa, " ", name_of(dtype), " L ", shape.rows, " S ", shape.keys);
        CHECK(error_of_run(device_of(isa), p, x) <= 1.0);
        const auto want = bytes_of(x.out);
        const auto want_lse = bytes_of(x.lse);
        bool shares_spans = false;
        for (const int threads : {2, 3, 8, 64}) {
          const Device device = device_of(isa, threads);
          shares_spans = shares_spans || plan_sdpa(device, p).scratch_bytes[0] > 0;
          fill_bytes(x.out, 0xff);
          fill_bytes(x.lse, 0xff);
          sdpa(device, x, p);
          INFO(threads, " threads");
          CHECK(bytes_of(x.out) == want);
          CHECK(bytes_of(x.lse) == want_lse);
        }
        CHECK(shares_spans);
      }
    }
  }
}

TEST_CASE("encoded twice, items that share spans count anew") {
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa, 2);
    const KernelRegistry registry(device);
    std::mt19937 rng(16);
    const SdpaProblem p = prefill_problem(DType::bf16, 1, 5, 3000, 8, 8);
    CHECK(plan_sdpa(device, p).scratch_bytes[1] > 0);
    const SdpaOperands x = random_operands(rng, device, p);
    sdpa(device, x, p);
    const auto want = bytes_of(x.out);
    for (int round = 0; round < 2; ++round) {
      fill_bytes(x.out, 0xff);
      CommandEncoder encoder = device.command_encoder();
      encode_sdpa(encoder, registry, device, x, p);
      encode_sdpa(encoder, registry, device, x, p);
      encoder.commit_and_wait();
      INFO(isa, " round ", round);
      CHECK(bytes_of(x.out) == want);
    }
  }
}

TEST_CASE("spans are shared out where rows are few, and only then") {
  const auto scratch = [](int threads, std::int64_t rows, std::int64_t keys) {
    const Plan plan = plan_sdpa(device_of("baseline", threads),
                                prefill_problem(DType::f16, 4, rows, keys, 128, 128));
    return plan.scratch_bytes[0];
  };
  CHECK(scratch(1, 16, 32768) == 0);
  CHECK(scratch(2, 16, 32768) == 4 * 16 * 32 * (128 + 16) * sizeof(float));
  CHECK(scratch(2, 12, 32768) == 4 * 12 * 64 * (128 + 16) * sizeof(float));
  CHECK(scratch(2, 16, 1024) == 0);
  CHECK(scratch(2, 512, 32768) == 0);
  CHECK(scratch(16, 512, 32768) > 0);
  // States of more than 64 MB are not worth it.
  CHECK(scratch(64, 2048, 32768) == 0);
  // Keys that no query sees count for nothing.
  SdpaProblem early = prefill_problem(DType::f16, 4, 16, 32768, 128, 128);
  early.causal = true;
  early.q_start = 0;
  CHECK(plan_sdpa(device_of("baseline", 2), early).scratch_bytes[0] == 0);
  early.q_start = 2000;
  CHECK(plan_sdpa(device_of("baseline", 2), early).scratch_bytes[0] ==
        4 * 16 * 2 * (128 + 16) * sizeof(float));
  // One long sequence among short ones is shared out, too.
  SdpaProblem ragged = prefill_problem(DType::f16, 4, 16, 32768, 128, 128);
  ragged.batch = 8;
  ragged.set_packed_layouts();
  ragged.kv_lengths = {32768, 1, 1, 1, 1, 1, 1, 1};
  CHECK(plan_sdpa(device_of("baseline", 2), ragged).scratch_bytes[0] ==
        4 * 16 * 32 * (128 + 16) * sizeof(float));
}

TEST_CASE("items that share spans may run in any order") {
  for (const std::string& isa : isas()) {
    const Device device = device_of(isa, 8);
    const KernelRegistry registry(device);
    std::mt19937 rng(20);
    for (const DType dtype : kDTypes) {
      // Two sets of rows. Of sequence 0 only the later rows see the second span; sequence 1 has
      // one.
      SdpaProblem p = prefill_problem(dtype, 6, 70, 2100, 8, 8);
      p.batch = 2;
      p.n_kv_heads = 2;
      p.set_packed_layouts();
      p.causal = true;
      p.q_start = 1000;
      p.kv_lengths = {2100, 1010};
      const SdpaOperands x = random_operands(rng, device, p);
      CHECK(error_of_run(device, p, x) <= 1.0);
      const auto want = bytes_of(x.out);
      const auto want_lse = bytes_of(x.lse);
      const Plan plan = plan_sdpa(device, p);
      REQUIRE(plan.scratch_bytes[0] > 0);
      REQUIRE(plan.steps.front().threadgroups.count() == 12);  // 2 heads of 4 items and of 2
      const auto pipeline = plan_pipeline(registry, plan.steps.front().kernel, {});
      const NativeKernel kernel = static_cast<const cpu::NativePipeline&>(*pipeline).kernel;
      Launched launched(plan, x);
      std::vector<std::uint64_t> order(launched.item_count());
      std::iota(order.begin(), order.end(), 0);
      for (int round = 0; round < 4; ++round) {
        std::shuffle(order.begin(), order.end(), rng);
        fill_bytes(x.out, 0xff);
        fill_bytes(x.lse, 0xff);
        launched.run(kernel, order);
        INFO(isa, " ", name_of(dtype), " round ", round);
        CHECK(bytes_of(x.out) == want);
        CHECK(bytes_of(x.lse) == want_lse);
      }
    }
  }
}

TEST_CASE("items are long where they are plenty and narrow") {
  const auto sets = [](int threads, std::int64_t rows, std::int64_t width) {
    SdpaProblem p = prefill_problem(DType::f32, 24, rows, 40, width / 2, width / 2);
    p.n_kv_heads = 24;
    p.set_packed_layouts();
    return plan_sdpa(device_of("baseline", threads), p).steps.front().threadgroups.x;
  };
  CHECK(sets(1, 384, 128) == 1);
  CHECK(sets(1, 385, 128) == 2);
  CHECK(sets(1, 256, 384) == 1);
  CHECK(sets(1, 257, 384) == 2);
  CHECK(sets(1, 192, 512) == 1);
  CHECK(sets(1, 193, 512) == 2);
  CHECK(sets(2, 384, 128) == 2);
  CHECK(sets(2, 385, 128) == 2);
}

TEST_CASE("long items have the bits of short ones") {
  for (const std::string& isa : isas()) {
    const Device one = device_of(isa);
    const Device eight = device_of(isa, 8);
    std::mt19937 rng(21);
    for (const DType dtype : kDTypes) {
      SdpaProblem p = prefill_problem(dtype, 24, 384, 45, 4, 4);
      p.n_kv_heads = 24;
      p.set_packed_layouts();
      const SdpaOperands x = random_operands(rng, one, p);
      INFO(isa, " ", name_of(dtype));
      CHECK(plan_sdpa(one, p).steps.front().threadgroups.x == 1);
      CHECK(plan_sdpa(eight, p).steps.front().threadgroups.x > 1);
      CHECK(error_of_run(one, p, x) <= 1.0);
      const auto want = bytes_of(x.out);
      fill_bytes(x.out, 0xff);
      sdpa(eight, x, p);
      CHECK(bytes_of(x.out) == want);
    }
  }
}
