// Random attention problems with their memory.
#pragma once

#include <random>

#include "metal_sdpa/metal_sdpa.h"

namespace metal_sdpa::test {

/// How large random problems may be; software Metal takes the small ones.
struct ProblemLimits {
  std::int64_t head_dim = 1024;
  std::int64_t kv_capacity = 200;
  std::int64_t work = 400000;  ///< multiply-adds, about
};

ProblemLimits limits_for(const Device& device);

/// Shape, layouts, lengths, positions and scale; every second one has lengths of its own for each
/// sequence. Layouts are permuted, padded, reversed or broadcast (k and v only).
SdpaProblem random_problem(std::mt19937& rng, const ProblemLimits& limits);

/// Memory for a problem, filled with one of the input families (noise, peaked rows, large
/// cancelling logits, a query close to a key, constant values, equal scores). Slots at or past
/// kv_len and the padding between rows hold NaN; out and lse hold a pattern.
SdpaOperands random_operands(std::mt19937& rng, const Device& device, const SdpaProblem& problem);

/// Memory that `problem` needs, NaN in every element.
SdpaOperands poisoned_operands(const Device& device, const SdpaProblem& problem);

}  // namespace metal_sdpa::test
