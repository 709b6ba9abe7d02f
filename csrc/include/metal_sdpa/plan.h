// What a device will do for one attention problem: ordered steps, each one dispatch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "metal_sdpa/encoder.h"
#include "metal_sdpa/export.h"
#include "metal_sdpa/inline_vector.h"
#include "metal_sdpa/native_kernel.h"

namespace metal_sdpa {

/// What a plan's binding refers to: an operand of the problem or scratch memory i of the plan.
enum class PlanOperand : std::uint8_t {
  q,
  k,
  v,
  out,
  lse,
  mask,
  sinks,
  alibi_slopes,
  block_table,
  scratch0,
  scratch1,
  scratch2,
  scratch3
};
inline constexpr std::size_t kMaxScratch = 4;

struct PlanBinding {
  std::uint32_t index = 0;
  PlanOperand operand = PlanOperand::q;
  bool zero_first = false;  ///< scratch that the step finds filled with 0 (CPU device)
};

/// The argument block of a step.
struct PlanArgs {
  std::uint32_t index = 0;
  InlineVector<std::byte, 512> bytes;
};

/// Constant bytes that many steps may share. More than DeviceLimits::max_inline_bytes become a
/// buffer.
struct PlanTable {
  std::uint32_t index = 0;
  std::shared_ptr<const std::vector<std::byte>> bytes;  ///< nullptr: nothing is bound
};

/// Bytes offset..offset+length of an operand that a step reads or writes.
struct PlanRange {
  PlanOperand operand = PlanOperand::q;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
};

struct PlanStep {
  const char* kernel = "";  ///< a string literal, or text that lives as long as the process
  InlineVector<FunctionConstant, 16> constants;
  /// Index of a constant that is true where the memory of q, k and v starts on 16 bytes; -1: none.
  /// A plan knows strides and offsets, not addresses.
  int aligned_constant = -1;
  GridSize threadgroups;
  GridSize threadgroup_size;
  InlineVector<PlanBinding, 16> bindings;
  PlanArgs args;
  PlanTable sequences;  ///< SdpaSequence [B], or a device's list of work made from it
  /// Which work items there are, where the grid does not say it (CPU device). Threadgroups are then
  /// shares of the work that cost about the same, larger ones first.
  PlanTable work;
  InlineVector<ThreadgroupMemory, 4> threadgroup_memory;
  InlineVector<PlanRange, 12> reads;
  InlineVector<PlanRange, 4> writes;
  double flops = 0;  ///< estimate, 2 for a multiply-add; decides on threads and on cutting
};

struct Plan {
  std::vector<PlanStep> steps;
  std::uint64_t scratch_bytes[kMaxScratch] = {};
  std::int64_t span_len = 0;  ///< keys of one span (of the longest sequence)
  std::string reason;         ///< why these kernels; empty where there was no choice

  /// The plan in words, a line a step.
  METAL_SDPA_API std::string describe() const;
};

}  // namespace metal_sdpa
