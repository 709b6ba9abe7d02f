// One row of a span from the keys that it sees alone, one key at a time. A tile multiplies the
// values of all its keys, so a NaN or infinity in one that a row does not see makes 0 * NaN of it.
// What a row does see may be as it likes: the answer is that of exact arithmetic.
#ifndef METAL_SDPA_ROW_REPAIR_H
#define METAL_SDPA_ROW_REPAIR_H

#include <metal_stdlib>

#include "key_rows.h"
#include "lanes.h"
#include "score_rule.h"
#include "softmax_state.h"
#include "unroll.h"

namespace metal_sdpa {

/// A row and its band among the keys of a span.
template <typename T>
struct BandKeys {
  device const T* q;
  KeyRows<T> k;
  KeyRows<T> v;
  PageList pages;
  long begin;
  long end;
  RowRule rule;
};

/// Score of key j, by the whole simdgroup; -inf where a mask hides it.
template <typename T>
float score_of_key(thread const BandKeys<T>& keys, thread const ScoreRule& rule, long j,
                   int head_dim, int lane) {
  device const T* k = keys.k.at(keys.pages, j);
  float product = 0.0f;
  SDPA_ROLLED
  for (int d = lane; d < head_dim; d += kLanes) {
    product = metal::fma(float(keys.q[d]), float(k[d]), product);
  }
  return rule.score(sum_of_lanes(product), keys.rule, j);
}

/// Writes columns first_column .. first_column + kWidth - 1 (those under head_dim) of a row: its
/// numerators at `reference`, times what brings the sum of its weights to `sum`, times `factor`. A
/// key whose score is -inf counts as not seen.
template <int kWidth, typename T, typename Out>
void repair_row(BandKeys<T> keys, thread const ScoreRule& rule, float reference, float sum,
                float factor, device Out* target, int head_dim, int first_column, int lane) {
  enum { kColumns = kWidth / kLanes };  // of a lane
  const float from = subtrahend(reference);
  float numerators[kColumns];
  float compensations[kColumns];
  float weights = 0.0f;
  float weights_compensation = 0.0f;
  SDPA_UNROLL
  for (int c = 0; c < kColumns; ++c) numerators[c] = compensations[c] = 0.0f;
  SDPA_ROLLED
  for (long j = keys.begin; j < keys.end; ++j) {
    const float score = score_of_key(keys, rule, j, head_dim, lane);
    if (score == -INFINITY) continue;
    const float weight = weight_of(score, from);
    compensated_add(weights, weights_compensation, weight);
    device const T* v = keys.v.at(keys.pages, j);
    SDPA_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      const int column = first_column + lane + kLanes * c;
      if (column >= head_dim) continue;
      compensated_add_special(numerators[c], compensations[c], weighted(float(v[column]), weight));
    }
  }
  const float to_sum = inverse_of_sum(weights) * sum;
  SDPA_UNROLL
  for (int c = 0; c < kColumns; ++c) {
    const int column = first_column + lane + kLanes * c;
    if (column < head_dim) target[column] = Out(normalised(numerators[c] * to_sum, factor));
  }
}

}  // namespace metal_sdpa

#endif  // METAL_SDPA_ROW_REPAIR_H
