// From a validated problem to dispatches: checks operands, finds pipelines, binds memory.
#pragma once

#include <memory>
#include <vector>

#include "core/backend.h"
#include "core/hazards.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa {

using ScratchList = std::vector<std::shared_ptr<Storage>>;

/// The buffer that an operand is; nullptr where it is scratch memory. k and v of no rows may have
/// none; nothing reads them, and q's stands in.
inline const Buffer* operand_buffer(PlanOperand operand, const SdpaOperands& operands) {
  switch (operand) {
    case PlanOperand::q:
      return &operands.q;
    case PlanOperand::k:
      return operands.k.valid() ? &operands.k : &operands.q;
    case PlanOperand::v:
      return operands.v.valid() ? &operands.v : &operands.q;
    case PlanOperand::out:
      return &operands.out;
    case PlanOperand::lse:
      return &operands.lse;
    default:
      return nullptr;
  }
}

/// Which scratch memory an operand is that is no buffer.
inline std::size_t scratch_index(PlanOperand operand) {
  return static_cast<std::size_t>(operand) - static_cast<std::size_t>(PlanOperand::scratch0);
}

/// The device's plan for a problem that passed validate_problem; without steps where the output has
/// no element.
Plan plan_valid(const Backend& backend, const SdpaProblem& problem, const DeviceOptions& options);

/// Memory for every scratch of the plan; entries that `scratch` holds and that fit stay.
void reserve_scratch(Backend& backend, const Plan& plan, ScratchList& scratch);

/// One record a step, with pipelines of `registry`, bound to the operands and the scratch.
std::vector<DispatchRecord> resolve_plan(Backend& backend, const KernelRegistry& registry,
                                         const Plan& plan, const SdpaOperands& operands,
                                         const ScratchList& scratch);

}  // namespace metal_sdpa
