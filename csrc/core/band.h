// What the sequences of a problem see, as kernels are told it, and how much that is.
#pragma once

#include "metal_sdpa/sdpa.h"
#include "shaders/sdpa_band.h"

namespace metal_sdpa {

/// Sides, offset and stride of a validated problem; causal is in them, sides past 2^60 are
/// unlimited.
SdpaWindow window_of(const SdpaProblem& problem);

/// Element of the block table's buffer that is sequence b's first entry.
std::int64_t first_entry(const PageTable& pages, std::int64_t b);

SdpaSequence sequence_of(const SdpaProblem& problem, std::int64_t b);

/// Keys that any query of sequence b sees.
SdpaBand visible_band(const SdpaProblem& problem, std::int64_t b);

/// Whether a row's keys may begin behind key 0, or rows be out of use.
bool has_band_begin(const SdpaProblem& problem);

/// Pairs (query, key) that rows row_begin..row_end of a sequence see among keys begin..end, of one
/// head. Exact for a key_stride of 1, else an estimate.
double band_pairs(const SdpaSequence& sequence, const SdpaWindow& window, std::int64_t row_begin,
                  std::int64_t row_end, const SdpaBand& keys);

/// Pairs (query, visible key) of one head, summed over the batch; of one sequence.
double visible_pairs(const SdpaProblem& problem);
double visible_pairs(const SdpaProblem& problem, std::int64_t b);

/// Longest kv_len of the batch.
std::int64_t longest_kv_len(const SdpaProblem& problem);

}  // namespace metal_sdpa
