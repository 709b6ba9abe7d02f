// From a validated problem to dispatches: checks operands, finds pipelines, binds memory.
#pragma once

#include <memory>
#include <vector>

#include "core/backend.h"
#include "core/hazards.h"
#include "core/operands.h"
#include "metal_sdpa/export.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa {

using ScratchList = std::vector<std::shared_ptr<Storage>>;

/// What sdpa() does; errors begin with `call`.
METAL_SDPA_API void run_sdpa(const Device& device, const SdpaOperands& operands,
                             const SdpaProblem& problem, const char* call);

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
