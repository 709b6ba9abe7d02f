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

/// What a problem may ask for besides lengths and causality.
struct Features {
  bool window = false;
  bool kv_starts = false;
  bool query_lengths = false;
  bool key_positions = false;  ///< key_offset and key_stride
  bool boolean_mask = false;
  bool additive_mask = false;  ///< where there is no boolean one
  bool softcap = false;
  bool alibi_slopes = false;
  bool sinks = false;
  bool out_f32 = false;
};

/// Each with one chance in `n`.
Features random_features(std::mt19937& rng, int n);

/// Gives a problem the features, with random values around the edges of tiles and layouts of any
/// strides: permuted, padded, reversed and broadcast axes of masks, keys that are no neighbours.
void add_features(std::mt19937& rng, const Features& features, SdpaProblem& problem);

/// Memory for a problem, filled with one of the input families (noise, peaked rows, large
/// cancelling logits, a query close to a key, constant values, equal scores), masks with one of
/// theirs (all seen, few seen, blocks, rows that see nothing; noise, zeros, lowest finite numbers).
/// NaN stands in slots at or past kv_len or before kv_start, in the padding between rows and in
/// entries of additive masks whose key no row reaches; in every second problem also in slots that
/// no row sees. out and lse hold a pattern.
SdpaOperands random_operands(std::mt19937& rng, const Device& device, const SdpaProblem& problem);

/// Memory that `problem` needs, NaN in every element.
SdpaOperands poisoned_operands(const Device& device, const SdpaProblem& problem);

}  // namespace metal_sdpa::test
