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

/// What sdpa() does; errors begin with `call`.
METAL_SDPA_API void run_sdpa(const Device& device, const SdpaOperands& operands,
                             const SdpaProblem& problem, const char* call);

/// The device's plan for a problem that passed validate_problem; without steps where the output has
/// no element.
Plan plan_valid(const Backend& backend, const SdpaProblem& problem, const DeviceOptions& options);

/// One record a step, with pipelines of `registry`, bound to the operands and the scratch.
std::vector<DispatchRecord> resolve_plan(Backend& backend, const KernelRegistry& registry,
                                         const Plan& plan, const SdpaOperands& operands,
                                         const ScratchList& scratch);

/// Records a plan of a validated problem, whose operands are valid too. `scratch` may hold memory
/// that is to be used.
void encode_plan(EncoderState& state, const KernelRegistry& registry, const Device& device,
                 const SdpaOperands& operands, const SdpaProblem& problem, const Plan& plan,
                 ScratchList scratch);

/// Memory for a plan of all of the problem's kv_capacity.
Plan plan_capacity(const Device& device, const SdpaProblem& problem);

/// InvalidArgument where the encoder takes no attention, or one of the three is of another device.
void check_encode(EncoderState& state, const KernelRegistry& registry, const Device& device,
                  const char* call);

}  // namespace metal_sdpa
