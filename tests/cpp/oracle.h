// Attention in float64, by another algorithm than any kernel, and the bounds that hold against it.
#pragma once

#include <string>
#include <vector>

#include "metal_sdpa/metal_sdpa.h"

namespace metal_sdpa::test {

/// What float64 says of one problem, row by row ([B, Hq, L] in that order).
struct Reference {
  std::vector<double> out;  ///< [B, Hq, L, Dv]
  std::vector<double> lse;  ///< [B, Hq, L]
  std::vector<double>
      scale_of_v;  ///< || sum_j p_j |v_j| || of finite elements: errors are relative to it
  std::vector<double> score_size;  ///< |scale| max_j ||q|| ||k_j|| over visible keys, + max |bias|
};

/// Whether row i of sequence b sees a key, as far as positions and lengths say: from the positions
/// of both, not from an interval.
bool is_in_reach(const SdpaProblem& problem, std::int64_t b, std::int64_t i, std::int64_t key);

/// The same with the mask, of which the entries of keys in reach are looked at.
bool is_visible(const SdpaProblem& problem, const SdpaOperands& operands, std::int64_t b,
                std::int64_t h, std::int64_t i, std::int64_t key);

/// Explicit probabilities, from log-sum-exp by pairwise log-add, then a weighted sum in key order.
Reference reference_sdpa(const SdpaProblem& problem, const SdpaOperands& operands);

/// Largest error over its bound (docs/accuracy.md, with the bias in it); above 1 is wrong, infinity
/// where a value is NaN or infinite that should not be, or the other way round. `lse` is compared
/// where the problem returns it.
double worst_error(const SdpaProblem& problem, const SdpaOperands& operands,
                   const Reference& reference);

}  // namespace metal_sdpa::test
