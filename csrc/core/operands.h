// What the operands of a problem are called, where kernels find them and what they look like: one
// table for validation, binding and the ranges that hazards are tracked by.
#pragma once

#include <array>
#include <cstdint>

#include "core/layout.h"
#include "metal_sdpa/plan.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa {

struct OperandInfo {
  PlanOperand operand;
  const char* name;            ///< in error texts
  std::uint32_t buffer_index;  ///< SDPA_BUFFER_*
  Buffer SdpaOperands::* buffer;
  bool is_output;
  bool (*is_used)(const SdpaProblem& problem);
  DType (*dtype)(const SdpaProblem& problem);
  const char* dtype_reason;  ///< "q has ": behind "dtype f16, but "
  TensorView (*view)(const SdpaProblem& problem);
};

inline constexpr std::size_t kOperands = 9;

/// In the order of PlanOperand, inputs and outputs mixed.
const std::array<OperandInfo, kOperands>& operand_table();

inline const OperandInfo& operand_info(PlanOperand operand) {
  return operand_table()[static_cast<std::size_t>(operand)];
}

/// Bytes that an operand's view touches. The problem has been validated.
PlanRange operand_range(const SdpaProblem& problem, const OperandInfo& info);

/// The buffer that an operand is; nullptr where it is scratch memory. An input of no elements may
/// have none; nothing reads it, and q's stands in.
inline const Buffer* operand_buffer(PlanOperand operand, const SdpaOperands& operands) {
  if (operand >= PlanOperand::scratch0) return nullptr;
  static constexpr Buffer SdpaOperands::* kBuffers[kOperands] = {
      &SdpaOperands::q,          &SdpaOperands::k,
      &SdpaOperands::v,          &SdpaOperands::out,
      &SdpaOperands::lse,        &SdpaOperands::mask,
      &SdpaOperands::sinks,      &SdpaOperands::alibi_slopes,
      &SdpaOperands::block_table};
  const Buffer& buffer = operands.*kBuffers[static_cast<std::size_t>(operand)];
  return buffer.valid() ? &buffer : &operands.q;
}

/// Which scratch memory an operand is that is no buffer.
inline std::size_t scratch_index(PlanOperand operand) {
  return static_cast<std::size_t>(operand) - static_cast<std::size_t>(PlanOperand::scratch0);
}

}  // namespace metal_sdpa
