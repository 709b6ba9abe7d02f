// What becomes of q . k on its way to the softmax, in natural units: times scale, capped, less
// ALiBi, plus an additive mask, hidden by a boolean one. What a problem does not have is switched
// off by a function constant and costs nothing. sdpa_band.h says which keys there are at all.
#ifndef METAL_SDPA_SCORE_RULE_H
#define METAL_SDPA_SCORE_RULE_H

#include <metal_stdlib>

#include "sdpa_args.h"
#include "sdpa_problem.h"

constant bool softcap_constant [[function_constant(SDPA_CONSTANT_SOFTCAP)]];
constant bool alibi_constant [[function_constant(SDPA_CONSTANT_ALIBI)]];
constant bool mask_constant [[function_constant(SDPA_CONSTANT_MASK)]];
constant bool bias_constant [[function_constant(SDPA_CONSTANT_BIAS)]];
constant bool capped = is_function_constant_defined(softcap_constant) ? softcap_constant : false;
constant bool alibi = is_function_constant_defined(alibi_constant) ? alibi_constant : false;
constant bool masked = is_function_constant_defined(mask_constant) ? mask_constant : false;
constant bool biased = is_function_constant_defined(bias_constant) ? bias_constant : false;
constant bool has_mask = masked || biased;

namespace metal_sdpa {

/// Element `index` of memory that holds SDPA_ELEMENT_ kind.
inline float element_of_kind(device const uchar* memory, uint kind, long index) {
  if (kind == SDPA_ELEMENT_F16) return float(reinterpret_cast<device const half*>(memory)[index]);
  if (kind == SDPA_ELEMENT_BF16) {
    return float(reinterpret_cast<device const bfloat*>(memory)[index]);
  }
  return reinterpret_cast<device const float*>(memory)[index];
}

/// A score and an entry of an additive mask. -inf hides the key, whatever its score is.
inline float plus_bias(float score, float bias) { return bias == -INFINITY ? bias : score + bias; }

/// What of the rule is one row's. Keys count from one that the caller chose.
struct RowRule {
  long mask;      ///< element of the mask at key 0
  long distance;  ///< of the row's position from key 0's
  float slope;
};

/// What of it all rows of a sequence have in common.
struct ScoreRule {
  float scale;
  float cap;
  uint mask_kind;
  long key_stride;  ///< positions from one key to the next
  long mask_key;    ///< elements of the mask from one key to the next
  device const uchar* mask;
  device const float* slopes;

  /// A subnormal cap, which the GPU takes for 0, leaves nothing of any score either way.
  void init(thread const SdpaArgs& args) {
    scale = args.scale;
    if (capped) cap = metal::max(args.softcap, 1.17549435e-38f);
    key_stride = args.window.key_stride;
    mask_kind = args.mask_kind;
    mask_key = args.mask_stride.key;
  }

  /// The rule of row [b][h][i], keys counting from slot first_key.
  RowRule row(thread const SdpaArgs& args, SdpaSequence sequence, long b, long h, long i,
              long first_key) const {
    RowRule row;
    row.mask = 0;
    row.distance = 0;
    row.slope = 0.0f;
    if (has_mask) {
      row.mask = args.mask_offset + b * args.mask_stride.batch + h * args.mask_stride.head +
                 (first_packed(sequence.q_row) + i) * args.mask_stride.row + first_key * mask_key;
    }
    if (alibi) {
      row.slope = slopes[args.alibi_offset + b * args.alibi_batch + h * args.alibi_head];
      row.distance = sequence.q_start + i - args.window.key_offset - first_key * key_stride;
    }
    return row;
  }

  /// Scale and cap, which are the same for every key.
  float scaled(float product) const {
    const float score = product * scale;
    return capped ? cap * metal::tanh(score / cap) : score;
  }

  /// What ALiBi takes off a score.
  float penalty(thread const RowRule& row, long key) const {
    const long distance = row.distance - key * key_stride;
    return row.slope * float(distance < 0 ? -distance : distance);
  }

  /// Whether a boolean mask lets the row see the key.
  bool lets_see(thread const RowRule& row, long key) const {
    return mask[row.mask + key * mask_key] != 0;
  }

  /// The score of one key that stands in the row's band; -inf where it is hidden.
  float score(float product, thread const RowRule& row, long key) const {
    float score = scaled(product);
    if (alibi) score -= penalty(row, key);
    if (biased) {
      score = plus_bias(score, element_of_kind(mask, mask_kind, row.mask + key * mask_key));
    }
    if (masked && !lets_see(row, key)) score = -INFINITY;
    return score;
  }
};

}  // namespace metal_sdpa

#endif  // METAL_SDPA_SCORE_RULE_H
