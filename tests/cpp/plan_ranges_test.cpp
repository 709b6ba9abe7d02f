// The ranges of plans, which the hazard tracker trusts: every operand of every step, and barriers
// where one operand of two calls is the same memory.
#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <vector>

#include "metal_problems.h"
#include "support.h"

namespace metal_sdpa::test {
namespace {

struct Span {
  std::uint64_t begin = UINT64_MAX;
  std::uint64_t end = 0;
  bool empty() const { return begin >= end; }
  bool covers(const Span& other) const {
    return other.empty() || (begin <= other.begin && other.end <= end);
  }
  void add(const Span& other) {
    if (other.empty()) return;
    begin = std::min(begin, other.begin);
    end = std::max(end, other.end);
  }
};

/// Bytes of rows, one by one: of each sequence the first `rows(b)`.
template <typename RowsOf>
Span bytes_of_rows(const SdpaProblem& problem, std::int64_t heads, std::int64_t width,
                   const TensorLayout& layout, const RowsOf& rows) {
  Span span;
  const auto size = static_cast<std::int64_t>(dtype_size(problem.dtype));
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t i = 0; i < rows(b); ++i) {
        const std::int64_t first = (layout.offset + b * layout.batch_stride +
                                    h * layout.head_stride + i * layout.row_stride) *
                                   size;
        span.add(
            {static_cast<std::uint64_t>(first), static_cast<std::uint64_t>(first + width * size)});
      }
    }
  }
  return span;
}

/// What attention touches of an operand at least: keys that some query sees.
Span touched(const SdpaProblem& problem, PlanOperand operand) {
  const auto queries = [&](std::int64_t) { return problem.seq_len; };
  const auto keys = [&](std::int64_t b) {
    const std::int64_t all = problem.sequence_kv_len(b);
    const std::int64_t seen = problem.sequence_q_start(b) + problem.seq_len;
    return problem.causal ? std::clamp<std::int64_t>(seen, 0, all) : all;
  };
  switch (operand) {
    case PlanOperand::q:
      return bytes_of_rows(problem, problem.n_heads, problem.head_dim, problem.q, queries);
    case PlanOperand::k:
      return bytes_of_rows(problem, problem.n_kv_heads, problem.head_dim, problem.k, keys);
    case PlanOperand::v:
      return bytes_of_rows(problem, problem.n_kv_heads, problem.value_dim, problem.v, keys);
    case PlanOperand::out:
      return bytes_of_rows(problem, problem.n_heads, problem.value_dim, problem.out, queries);
    default:
      return {0, static_cast<std::uint64_t>(problem.batch * problem.n_heads * problem.seq_len) * 4};
  }
}

bool is_scratch(PlanOperand operand) { return operand >= PlanOperand::scratch0; }

template <typename Ranges>
Span range_in(const Ranges& ranges, PlanOperand operand) {
  Span span;
  for (const PlanRange& range : ranges) {
    if (range.operand == operand) span.add({range.offset, range.offset + range.length});
  }
  return span;
}

void check_plan(const SdpaProblem& problem, const Plan& plan) {
  std::map<PlanOperand, Span> written;
  for (const PlanStep& step : plan.steps) {
    CAPTURE(step.kernel);
    for (const PlanBinding& binding : step.bindings) {
      CAPTURE(static_cast<int>(binding.operand));
      const Span read = range_in(step.reads, binding.operand);
      const Span write = range_in(step.writes, binding.operand);
      CHECK((!read.empty() || !write.empty() || touched(problem, binding.operand).empty()));
      if (is_scratch(binding.operand)) {
        const auto index = static_cast<std::size_t>(binding.operand) -
                           static_cast<std::size_t>(PlanOperand::scratch0);
        CHECK(std::max(read.end, write.end) <= plan.scratch_bytes[index]);
        // A kernel may read what it writes itself; anything else was written before.
        CHECK((write.covers(read) || written[binding.operand].covers(read)));
      } else if (!read.empty()) {
        CHECK(read.covers(touched(problem, binding.operand)));
      }
      written[binding.operand].add(write);
    }
    for (const PlanOperand operand : {PlanOperand::q, PlanOperand::k, PlanOperand::v}) {
      CHECK(range_in(step.writes, operand).empty());
    }
  }
  CHECK(written[PlanOperand::out].begin == touched(problem, PlanOperand::out).begin);
  CHECK(written[PlanOperand::out].end == touched(problem, PlanOperand::out).end);
  const Span lse = problem.return_lse ? touched(problem, PlanOperand::lse) : Span{};
  CHECK(written[PlanOperand::lse].begin == lse.begin);
  CHECK(written[PlanOperand::lse].end == lse.end);
}

std::size_t barriers_of(const Device& device, const SdpaProblem& problem,
                        const std::array<SdpaOperands, 2>& calls) {
  CommandEncoder encoder(device);
  for (const SdpaOperands& x : calls) {
    encode_sdpa(encoder, default_registry(device), device, x, problem);
  }
  return encoder.barrier_count();
}

}  // namespace

TEST_CASE("ranges of every step hold what it touches, and scratch is written before it is read") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    std::mt19937 rng(101);
    int several = 0;
    for (int round = 0; round < 300; ++round) {
      SdpaProblem problem = random_problem(rng, limits_for(device));
      if (round % 4 == 0) {  // several spans, too
        problem.kv_capacity = problem.kv_len = 5000 + round;
        problem.kv_lengths.clear();
        problem.set_packed_layouts();
      }
      for (const char* kernel : {"", "sdpa", "sdpa_decode", "sdpa_prefill"}) {
        problem.kernel = kernel;
        try {
          const Plan plan = plan_sdpa(device, problem);
          INFO(kind, " round ", round, " ", kernel);
          check_plan(problem, plan);
          several += plan.scratch_bytes[0] > 0;
        } catch (const Error& error) {
          REQUIRE(error.code() == ErrorCode::invalid_argument);  // a kernel that does not take it
        }
      }
    }
    CHECK(several > 50);
  }
}

TEST_CASE("one operand in common gives a barrier where either call writes it, and none elsewhere") {
  for (const std::string& kind : device_kinds()) {
    const Device device(kind);
    std::mt19937 rng(102);
    for (const std::int64_t length : {9, 3000}) {
      // q, k, v and out have one size, so that each can stand for each.
      SdpaProblem problem = problem_of({1, 1, 1, 1, length, length, 16, 16, false}, DType::f32);
      problem.k.row_stride = problem.v.row_stride = 0;  // every key is the same row
      const auto row = [&] { return device.empty({16}, DType::f32); };
      const auto call = [&] { return SdpaOperands{row(), row(), row(), row(), row()}; };
      const std::size_t apart = barriers_of(device, problem, {call(), call()});
      // A barrier between the steps of the second call keeps its last write behind the first call.
      const std::size_t behind = apart + (plan_sdpa(device, problem).steps.size() > 1 ? 0 : 1);
      const std::array<Buffer SdpaOperands::*, 3> inputs{&SdpaOperands::q, &SdpaOperands::k,
                                                         &SdpaOperands::v};
      const std::array<Buffer SdpaOperands::*, 2> outputs{&SdpaOperands::out, &SdpaOperands::lse};
      INFO(kind, " length ", length);
      for (const auto output : outputs) {
        for (const auto input : inputs) {
          SdpaOperands first = call();
          SdpaOperands second = call();
          second.*input = first.*output;  // read after write
          CHECK(barriers_of(device, problem, {first, second}) == apart + 1);
          CHECK(barriers_of(device, problem, {second, first}) == behind);  // write after read
        }
        for (const auto other : outputs) {
          SdpaOperands first = call();
          SdpaOperands second = call();
          second.*other = first.*output;
          CHECK(barriers_of(device, problem, {first, second}) == behind);
        }
      }
      for (const auto input : inputs) {
        for (const auto other : inputs) {
          SdpaOperands first = call();
          SdpaOperands second = call();
          second.*other = first.*input;  // two readers
          CHECK(barriers_of(device, problem, {first, second}) == apart);
        }
      }
    }
  }
}

}  // namespace metal_sdpa::test
