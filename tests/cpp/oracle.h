// Attention in float64, by another algorithm than any kernel, and the bounds that hold against it.
#pragma once

#include <string>
#include <vector>

#include "metal_sdpa/metal_sdpa.h"

namespace metal_sdpa::test {

/// What float64 says of one problem, row by row ([B, Hq, L] in that order).
struct Reference {
  std::vector<double> out;         ///< [B, Hq, L, Dv]
  std::vector<double> lse;         ///< [B, Hq, L]
  std::vector<double> scale_of_v;  ///< || sum_j p_j |v_j| ||, what errors are relative to
  std::vector<double> score_size;  ///< |scale| max_j ||q|| ||k_j|| over visible keys
};

/// Explicit probabilities, from log-sum-exp by pairwise log-add, then a weighted sum in key order.
Reference reference_sdpa(const SdpaProblem& problem, const SdpaOperands& operands);

/// Largest error over its bound (design: section 4 of the accuracy rules); above 1 is wrong. NaN
/// where a value is NaN that should not be. `lse` is compared where the problem returns it.
double worst_error(const SdpaProblem& problem, const SdpaOperands& operands,
                   const Reference& reference);

}  // namespace metal_sdpa::test
