// Weights as bf16 pairs. A weight is cut to bf16 once, as long as it is one of many; the few that
// carry a row keep what the cut took away, so that no row leaves the accuracy bound.
//
// A row may be off by 1.25 u (u = 2^-8) of m = || sum_j p_j |v_j| ||, and rounding the output takes
// up to 1 u. A weight p_j that is rounded by itself adds up to u p_j ||v_j||: nothing where many
// weights share the row, too much where it hangs on that one. So a weight is heavy where
// p_j ||v_j|| is more than kHeavyShare of m, for which the row's mass stands, the sum so far of
// p_j ||v_j||_1 / sqrt(Dv), at most m. What the others lose is about 0.57 u sqrt(kHeavyShare) of
// the row together, if their losses are independent. Rounding to nearest would not make them so:
// equal scores, as of repeated tokens, are all off by the same. A weight is therefore cut after a
// fraction of its last place was added that depends on the key's number alone and is spread evenly
// over any run of keys. On average nothing is lost, so that a row's sum, which the log-sum-exp
// shows, is that of the weights themselves.
#pragma once

#include "cpu/fast/prefill_tile.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

inline constexpr float kHeavyShare = 1.0f / 16;

/// What a block's softmax needs to know about its keys; slots up to a whole panel are 0.
struct PairsBlock {
  std::uint32_t fractions[kMaxBlock];  ///< added before the cut, in units of 2^-16 last places
  float norms[kMaxBlock];              ///< ||v_j||
  float masses[kMaxBlock];             ///< ||v_j||_1 / sqrt(Dv)
  float most_norm;
};

/// Block `block` of a sequence: the fractional parts of j / golden ratio + block * sqrt(2), of
/// H. Weyl's sequences the most even. One alone would not do for keys that repeat with a period
/// whose multiples of it are nearly whole; a block starts anew.
inline void spread_fractions(std::uint32_t block, std::uint32_t* fractions) {
  constexpr std::uint32_t kInverseGoldenRatio = 0x9e3779b9;  // times 2^32
  constexpr std::uint32_t kRootOfTwo = 0x6a09e667;           // less 1, times 2^32
  for (std::uint32_t j = 0; j < kMaxBlock; ++j) {
    fractions[j] = (j * kInverseGoldenRatio + kInverseGoldenRatio / 2 + block * kRootOfTwo) >> 16;
  }
}

/// What the heavy pairs of a row and block lost.
class HeavyPairs {
 public:
  void clear() { count_ = 0; }

  /// Takes the pairs of `n_keys` weights, a whole number of panels, that hold a heavy one: its
  /// product with its norm is above `limit`.
  void gather(const float* weights, const PairsBlock& block, float limit, int n_keys) {
    for (int j = 0; j < n_keys; j += kPanel) {
      const std::uint64_t heavy = heavy_lanes(weights + j, block.norms + j, limit);
      if (heavy != 0) add(weights + j, block.fractions + j, j / 2, heavy);
    }
  }

  /// Adds what was lost times `values`, packed panels of `panel_depth`, to a row's numerators.
  void add_values(const float* values, int panel_depth, int n_vecs, float* numerators) const {
    if (count_ == 0) return;
    for (int c = 0; c < n_vecs; ++c) {
      const float* column = values + c / 2 * panel_depth * kPanel + c % 2 * kLanes;
      Vec sum = load(numerators + c * kLanes);
      for (int i = 0; i < count_; ++i) {
        sum = dot_pairs(sum, splat(lost_[i]), load(column + slot_[i] * kPanel));
      }
      store(numerators + c * kLanes, sum);
    }
  }

 private:
  /// A bit for each of the kPanel keys.
  static std::uint64_t heavy_lanes(const float* weights, const float* norms, float limit) {
    const std::uint64_t low = lanes_over(load(weights) * load(norms), splat(limit));
    const std::uint64_t high =
        lanes_over(load(weights + kLanes) * load(norms + kLanes), splat(limit));
    return low | high << kLanes;
  }

  /// The pairs from `slot` on of which a bit in `heavy` is set.
  void add(const float* weights, const std::uint32_t* fractions, int slot, std::uint64_t heavy) {
    const Vec low = load(weights);
    const Vec high = load(weights + kLanes);
    float lost[kLanes];
    store(lost, upper_pairs(low - upper_half(add_bits(low, fractions)),
                            high - upper_half(add_bits(high, fractions + kLanes))));
    constexpr std::uint64_t kEven = 0x5555555555555555;
    for (std::uint64_t left = (heavy | heavy >> 1) & kEven; left != 0; left &= left - 1) {
      const int i = __builtin_ctzll(left) / 2;
      slot_[count_] = slot + i;
      lost_[count_] = lost[i];
      ++count_;
    }
  }

  int count_;
  int slot_[kMaxBlock / 2];
  float lost_[kMaxBlock / 2];  ///< pairs
};

/// What stands for larger norms and for NaN, so that neither a weight of 0 times a norm nor the sum
/// of a span's is anything but finite.
inline constexpr float kMostNorm = 0x1p115f;

/// The smaller one; `most` where v is NaN.
inline Vec at_most(Vec v, Vec most) {
  const Vec zero = splat(0.0f);
  return zero - max(zero - v, zero - most);
}

/// Describes the keys that pack_values takes.
inline void describe_values(const BF16* const* v, int skip, int n_keys, int value_dim,
                            PairsBlock& block) {
  constexpr int kUnit = 2 * kLanes;
  const Vec ones = pair_of_ones();
  const Vec inverse_root = splat(1.0f) / sqrt(splat(static_cast<float>(value_dim)));
  Vec most = splat(0.0f);
  for (int j = 0; j < (n_keys + kPanel - 1) / kPanel * kPanel; j += kLanes) {
    Vec squares[kLanes];
    Vec sums[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      Vec square = splat(0.0f);
      Vec sum = splat(0.0f);
      const bool is_key = j + i >= skip && j + i < n_keys;
      const BF16* row = is_key ? v[j + i] : zero_row<BF16>();
      const auto add = [&](Vec pairs) {
        square = dot_pairs(square, pairs, pairs);
        sum = dot_pairs(sum, absolute_pairs(pairs), ones);
      };
      int d = 0;
      for (; d + kUnit <= value_dim; d += kUnit) add(load_pairs(row + d));
      if (d < value_dim) add(load_pairs_first(row + d, value_dim - d));
      squares[i] = square;
      sums[i] = sum;
    }
    // ||v||_1 / sqrt(Dv) <= ||v|| <= ||v||_1, also where a sum of squares is out of range.
    const Vec all = at_most(sums_of_lanes(sums), splat(kMostNorm));
    const Vec mass = all * inverse_root;
    const Vec norm = at_most(max(sqrt(sums_of_lanes(squares)), mass), all);
    store(block.masses + j, mass);
    store(block.norms + j, norm);
    most = max(norm, most);
  }
  block.most_norm = reduce_max(most);
}

/// weights[j] = 2^(scores[j] - reference) for `n_keys` keys, a whole number of panels. Adds the
/// weights to `sum`, their products with `masses` to `mass`.
inline void weigh(const float* scores, const float* masses, float reference, int n_keys,
                  float* weights, float& sum, float& mass) {
  const Vec offset = splat(reference);
  Vec sums[2] = {splat(0.0f), splat(0.0f)};
  Vec totals[2] = {splat(0.0f), splat(0.0f)};
  for (int j = 0; j < n_keys; j += kPanel) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const int at = j + i * kLanes;
      const Vec weight = exp2(load(scores + at) - offset);
      sums[i] = sums[i] + weight;
      totals[i] = fma(weight, load(masses + at), totals[i]);
      store(weights + at, weight);
    }
  }
  sum += reduce_add(sums[0] + sums[1]);
  mass += reduce_add(totals[0] + totals[1]);
}

/// Weights of `n_keys` keys, cut to bf16, two in a slot.
inline void cut_weights(const float* weights, const std::uint32_t* fractions, int n_keys,
                        float* pairs) {
  for (int j = 0; j < n_keys; j += kPanel) {
    store(pairs + j / 2, upper_pairs(add_bits(load(weights + j), fractions + j),
                                     add_bits(load(weights + j + kLanes), fractions + j + kLanes)));
  }
}

/// Scores of `n_keys` keys, a whole number of panels, become weights 2^(score - reference), as
/// pairs in the first half of their slots. `most_weight` is that of the highest score. Adds to
/// `sum` and `mass` as weigh does.
inline void exponentiate_pairs(float* scores, const PairsBlock& block, float reference,
                               float most_weight, int n_keys, float& sum, float& mass,
                               HeavyPairs& heavy) {
  alignas(64) float weights[kMaxBlock];
  weigh(scores, block.masses, reference, n_keys, weights, sum, mass);
  cut_weights(weights, block.fractions, n_keys, scores);
  heavy.clear();
  const float limit = mass * kHeavyShare;
  // most_norm covers keys that this row may not see, so that it must not decide anything: a weight
  // may be above `most_weight` by exp2's rounding.
  constexpr float kAbove = 1 + 0x1p-16f;
  if (most_weight * block.most_norm * kAbove > limit) heavy.gather(weights, block, limit, n_keys);
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
