// The CPU planner: the fast families where they take the problem, else the straightforward kernel.
#include "cpu/plan.h"

#include "core/plan_args.h"
#include "core/text.h"
#include "cpu/fast/fast.h"
#include "cpu/sdpa.h"
#include "shaders/sdpa_params.h"

namespace metal_sdpa::cpu {
namespace {

constexpr DTypeNames kSdpaNames{"sdpa", "sdpa_f16", "sdpa_bf16"};

Plan plan_straightforward(const SdpaProblem& problem) {
  PlanStep step;
  step.kernel = kSdpaNames.of(problem.dtype);
  step.constants.push_back({SDPA_CONSTANT_GENERAL, true});
  step.threadgroups = {
      static_cast<std::uint32_t>(problem.batch), static_cast<std::uint32_t>(problem.n_heads),
      static_cast<std::uint32_t>((problem.seq_len + SDPA_TILE_Q - 1) / SDPA_TILE_Q)};
  step.threadgroup_size = {SDPA_TILE_Q, 1, 1};
  bind_sdpa_operands(problem, step);
  bind_sdpa_args(problem, sdpa_args(problem, kStraightSpan), step);
  step.flops = 2.0 * visible_pairs(problem) * static_cast<double>(problem.n_heads) *
               static_cast<double>(problem.head_dim + problem.value_dim);
  Plan plan;
  plan.span_len = kStraightSpan;
  plan.steps.push_back(std::move(step));
  return plan;
}

}  // namespace

Plan plan_sdpa(const SdpaProblem& problem, const PlanTarget& target) {
  if (problem.kernel == "sdpa") return plan_straightforward(problem);
  Plan plan;
  if (plan_fast(problem, target, plan)) return plan;
  if (!problem.kernel.empty()) {
    fail_argument("plan_sdpa: kernel: \"", problem.kernel,
                  "\" does not take this problem on the cpu device");
  }
  return plan_straightforward(problem);
}

}  // namespace metal_sdpa::cpu
