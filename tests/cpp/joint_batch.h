// Sequences attended alone, and the same ones as one problem: rows packed one sequence behind the
// other, K and V in pages.
#pragma once

#include <random>
#include <vector>

#include "metal_sdpa/metal_sdpa.h"

namespace metal_sdpa::test {

/// One sequence as a problem of its own.
struct LoneSequence {
  SdpaProblem problem;  ///< packed layouts, B 1
  SdpaOperands operands;
};

enum class KeyPlaces { dense, packed, paged };

/// How sequences are put together.
struct JointLayout {
  bool packed_queries = true;
  KeyPlaces keys = KeyPlaces::packed;
  bool heads_inside = false;  ///< rows hold all heads ([Tq, Hq, D], NHD pages)
  std::int64_t page_len = 16;
  DType table_dtype = DType::i32;
  bool table_of_starts = false;   ///< one list of entries, with a start a sequence
  bool one_tensor = false;        ///< K and V are parts of one tensor's rows
  std::int64_t shared_pages = 0;  ///< pages that every sequence has in common, their first ones
  std::int64_t aligned_to = 1;    ///< elements that offsets and strides are multiples of
};

/// What both the joint problem and the lone ones ask for; lengths are a sequence's own.
struct SequenceLengths {
  std::int64_t rows = 1;
  std::int64_t keys = 1;
  std::int64_t kv_start = 0;
};

/// Lone problems with memory. `shared` holds what they have in common: heads, dims, dtype, window,
/// whether there are a mask (its dtype), slopes and sinks. Sinks are those of the first.
std::vector<LoneSequence> lone_sequences(std::mt19937& rng, const Device& device,
                                         const SdpaProblem& shared,
                                         const std::vector<SequenceLengths>& lengths);

struct JointBatch {
  SdpaProblem problem;
  SdpaOperands operands;
};

/// One problem of them all. What no sequence has is NaN: rows between sequences, slots behind their
/// keys, unused pages. Entries of the table that no row needs are numbers of no page. With shared
/// pages, the first keys of all sequences become those of the first one.
JointBatch joint_batch(std::mt19937& rng, const Device& device, const JointLayout& layout,
                       std::vector<LoneSequence>& sequences);

/// Fills outputs with a pattern, for what has to be left alone to be seen.
void fill_outputs(const SdpaOperands& operands);

/// Whether the joint problem's rows have the bits of the lone ones, those out of use are 0 with lse
/// -inf or the sink, and nothing else was written.
bool has_lone_bits(const JointBatch& joint, const std::vector<LoneSequence>& sequences);

}  // namespace metal_sdpa::test
