// What every Metal kernel's plan is made of: cuts, steps, work lists, merges.
#pragma once

#include <cstdint>
#include <vector>

#include "metal/facts.h"
#include "metal/work_estimate.h"
#include "metal_sdpa/plan.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa {

/// What a plan has to know of a kernel: how it shares out work, and how it is bound.
struct KernelFacts {
  const char* kernel = "";
  SdpaSpanRule spans{};
  WorkUnit unit;              ///< what it cannot cut
  KernelRate rate;            ///< for cutting dispatches
  std::int64_t group = 1;     ///< query heads whose rows one threadgroup takes together
  std::int64_t block = 1;     ///< packed rows (of `group` heads) of one threadgroup
  std::uint32_t threads = 1;  ///< of one threadgroup
  std::uint32_t threadgroup_bytes = 0;
  std::uint32_t group_split = 1;  ///< SdpaArgs::group_split
  InlineVector<FunctionConstant, 4> constants;
  int aligned_constant = -1;
};

/// Spans whose states of the kernel's smallest unit of rows fit into SDPA_MAX_STATE_BYTES.
std::int64_t max_spans(const SdpaProblem& problem, const WorkUnit& unit);

/// A step for each part that the problem is cut into, and where a part's rows have several spans
/// the merge of their states after it. No step is estimated above facts.max_dispatch_seconds, and
/// no part leaves more than facts.max_state_bytes of states.
Plan plan_steps(const SdpaProblem& problem, const MetalFacts& facts, const KernelFacts& kernel);

/// The same for some sequences of the problem, behind what the plan has already.
void add_steps(const SdpaProblem& problem, const std::vector<std::int64_t>& sequences,
               const MetalFacts& facts, const KernelFacts& kernel, Plan& plan);

}  // namespace metal_sdpa
