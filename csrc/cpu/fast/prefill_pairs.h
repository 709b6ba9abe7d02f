// Weights as bf16 pairs. A weight is cut to bf16 once, as long as it is one of many; the few that
// carry a row keep what the cut took away, so that no row leaves the accuracy bound.
//
// A row may be off by 1.25 u of || sum_j p_j |v_j| ||, and rounding the output takes up to 1 u. A
// weight p_j that is rounded by itself adds up to u p_j ||v_j||: nothing where many weights share
// the row, too much where it hangs on that one. So a weight is heavy where p_j size_j, with
// size_j = sum_d |v_j[d]|, is more than 1 / kHeavyShare of the row's sum so far. What the others
// lose is about 0.57 u sqrt(1 / kHeavyShare) of the row together, if their losses are independent.
// Rounding to nearest would not make them so: equal scores, as of repeated tokens, are all off by
// the same. A weight is therefore cut after a fraction of its last place was added that depends on
// the key's number alone and is spread evenly over any run of keys. On average nothing is lost, so
// that a row's sum, which the log-sum-exp shows, is that of the weights themselves.
#pragma once

#include "cpu/fast/prefill_tile.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

inline constexpr float kHeavyShare = 16;

/// frac((j + 1/2) / golden ratio) in units of 2^-16: any run of n terms is spread as evenly as n
/// points can be, up to a factor (H. Weyl's sequence with the irrational of least constant).
struct Fractions {
  std::uint32_t of_key[kMaxBlock];
};
constexpr Fractions spread_fractions() {
  Fractions fractions{};
  constexpr std::uint64_t kInverseGoldenRatio = 0x9e3779b97f4a7c15;  // times 2^64
  for (std::uint64_t j = 0; j < kMaxBlock; ++j) {
    const std::uint64_t term = kInverseGoldenRatio * j + kInverseGoldenRatio / 2;
    fractions.of_key[j] = static_cast<std::uint32_t>(term >> 48);
  }
  return fractions;
}
alignas(64) inline constexpr Fractions kFractions = spread_fractions();

/// bf16 1 twice.
inline Vec pair_of_ones() { return upper_pairs(splat(1.0f), splat(1.0f)); }

/// What the heavy pairs of a row and block lost.
class HeavyPairs {
 public:
  void clear() { count_ = 0; }

  /// Takes the pairs of `n_keys` weights, a whole number of panels, of which one is heavy: its
  /// product with its size is above `limit`.
  [[gnu::noinline]] void gather(const float* weights, const float* sizes, float limit, int n_keys) {
    for (int j = 0; j < n_keys; j += kPanel) {
      const std::uint64_t heavy = heavy_lanes(weights + j, sizes + j, limit);
      if (heavy != 0) add(weights + j, kFractions.of_key + j, j / 2, heavy);
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
  static std::uint64_t heavy_lanes(const float* weights, const float* sizes, float limit) {
    const std::uint64_t low = lanes_over(load(weights) * load(sizes), splat(limit));
    const std::uint64_t high =
        lanes_over(load(weights + kLanes) * load(sizes + kLanes), splat(limit));
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

/// What stands for larger sizes and for NaN, so that neither a weight of 0 times a size nor the sum
/// of a span's is anything but finite.
inline constexpr float kMostSize = 0x1p115f;

/// sizes[j] = sum over the row of |v_j|, for the keys that pack_values takes; 0 up to a whole
/// panel. Returns the largest.
inline float size_values(const Rows<const BF16>& v, sdpa_i64 begin, int n_keys, int value_dim,
                         float* sizes) {
  constexpr int kUnit = 2 * kLanes;
  const Vec ones = pair_of_ones();
  const Vec zero = splat(0.0f);
  Vec most = zero;
  for (int j = 0; j < (n_keys + kPanel - 1) / kPanel * kPanel; j += kLanes) {
    Vec sums[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      sums[i] = zero;
      if (j + i >= n_keys) continue;
      const BF16* row = v[begin + j + i];
      int d = 0;
      for (; d + kUnit <= value_dim; d += kUnit) {
        sums[i] = dot_pairs(sums[i], absolute_pairs(load_pairs(row + d)), ones);
      }
      if (d == value_dim) continue;
      sums[i] = dot_pairs(sums[i], absolute_pairs(load_pairs_first(row + d, value_dim - d)), ones);
    }
    const Vec bounded = zero - max(zero - sums_of_lanes(sums), splat(-kMostSize));
    most = max(bounded, most);
    store(sizes + j, bounded);
  }
  return reduce_max(most);
}

/// weights[j] = 2^(scores[j] - reference) for `n_keys` keys, a whole number of panels. Adds the
/// weights to `sum`, their products with `sizes` to `mass`.
inline void weigh(const float* scores, const float* sizes, float reference, int n_keys,
                  float* weights, float& sum, float& mass) {
  const Vec offset = splat(reference);
  Vec sums[2] = {splat(0.0f), splat(0.0f)};
  Vec masses[2] = {splat(0.0f), splat(0.0f)};
  for (int j = 0; j < n_keys; j += kPanel) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const int at = j + i * kLanes;
      const Vec weight = exp2(load(scores + at) - offset);
      sums[i] = sums[i] + weight;
      masses[i] = fma(weight, load(sizes + at), masses[i]);
      store(weights + at, weight);
    }
  }
  sum += reduce_add(sums[0] + sums[1]);
  mass += reduce_add(masses[0] + masses[1]);
}

/// Weights of `n_keys` keys, cut to bf16, two in a slot.
inline void cut_weights(const float* weights, int n_keys, float* pairs) {
  for (int j = 0; j < n_keys; j += kPanel) {
    const std::uint32_t* fractions = kFractions.of_key + j;
    store(pairs + j / 2, upper_pairs(add_bits(load(weights + j), fractions),
                                     add_bits(load(weights + j + kLanes), fractions + kLanes)));
  }
}

/// Scores of `n_keys` keys, a whole number of panels, become weights 2^(score - reference), as
/// pairs in the first half of their slots. None is above `most_weight`, no size above `most_size`.
/// Adds to `sum` and `mass` as weigh does.
inline void exponentiate_pairs(float* scores, const float* sizes, float reference,
                               float most_weight, float most_size, int n_keys, float& sum,
                               float& mass, HeavyPairs& heavy) {
  alignas(64) float weights[kMaxBlock];
  weigh(scores, sizes, reference, n_keys, weights, sum, mass);
  cut_weights(weights, n_keys, scores);
  heavy.clear();
  const float limit = mass / kHeavyShare;
  if (most_weight * most_size <= limit) return;
  heavy.gather(weights, sizes, limit, n_keys);
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
