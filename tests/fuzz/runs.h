// Gives a case to the library, in one of the ways there are.
#pragma once

#include <string>

#include "memory_block.h"
#include "problem_maker.h"

namespace metal_sdpa::fuzz {

/// The operands of a case; those that it does not have are one element long.
struct CaseMemory {
  explicit CaseMemory(const FuzzCase& c);
  SdpaOperands operands(const Device& device, bool with_lse) const;
  void clear_results();

  MemoryBlock q, k, v, out, lse, mask, sinks, slopes;
};

/// Fills the inputs; slots that no length reaches hold NaN. Of a hostile case everything is filled.
void fill_inputs(const FuzzCase& c, CaseMemory& memory);

/// Empty where it ran, else the text of the Error that refused it. Fails the case where an error
/// comes late, or has no text.
std::string run_case(const FuzzCase& c, const Device& device, const SdpaOperands& operands);

}  // namespace metal_sdpa::fuzz
