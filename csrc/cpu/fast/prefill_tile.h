// Products of one tile of query rows: scores Q K^T of a block of keys, and weights times values.
#pragma once

#include "cpu/fast/prefill_near.h"
#include "cpu/fast/prefill_pack.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// Most keys of a block.
inline constexpr int kMaxBlock = 256;

/// Slots from one row of scores to the next, and of numerators. An odd number of vectors: on
/// Intel's processors a load waits for an earlier store that is a multiple of 4 KB away.
inline constexpr int kScoreStep = kMaxBlock + kLanes;
constexpr int numerator_step(int n_vecs) { return (n_vecs | 1) * kLanes; }

/// Rows of a tile that is multiplied in vectors, rounded up to whole vectors.
inline constexpr int kVectorStep = (kRowTile + kLanes - 1) / kLanes * kLanes;

/// Rows of a tile, and the same rounded up to whole vectors.
template <typename T>
inline constexpr int kTileRows = kUsesAmx<T> ? 2 * kAmxRows : kRowTile;
template <typename T>
inline constexpr int kTileStep = kUsesAmx<T> ? kTileRows<T> : kVectorStep;

/// Rows of a tile of `rows` that are multiplied at once: all, or half of them and then the others,
/// where that keeps the sums of a chain and of the chain before it in registers. With AVX-512
/// products of 12 rows run at 98 % of the peak by halves, at 94 % at once.
constexpr int half_rows(int rows, int n_vecs) {
  return rows * n_vecs > kMostSums ? (rows + 1) / 2 : rows;
}
static_assert(2 * half_rows(kRowTile, 2) <= kMostSums);

/// How a sum is cut so that rounding errors stay within the accuracy bound for any D and S: into
/// chains of f32 additions that start from zero, a few of which are added one after the other to
/// the sum of a group, and groups, of which the same is true.
struct Chains {
  int chain_len;
  int group_len;
};

inline constexpr int kMostInGroup = 6;

/// Chains of `depth` steps, as even as can be, each at most `most_steps` long.
inline Chains even_chains(int depth, int most_steps) {
  const int n_groups = (depth - 1) / (kMostInGroup * most_steps) + 1;
  const int group_len = (depth + n_groups - 1) / n_groups;
  const int n_chains = (group_len + most_steps - 1) / most_steps;
  return {(group_len + n_chains - 1) / n_chains, group_len};
}

/// Steps of a chain at most. A chain of n equal additions is off by up to n / 3 units of its last
/// place; every end of one costs an addition. bf16 products have 16 bits, so that 256 equal ones
/// are added exactly. 16-bit outputs leave room for weighted values, but not for scores, which the
/// log-sum-exp shows.
template <bool kOfPairs>
inline constexpr int kScoreChain = kOfPairs ? 32 : 22;
template <typename T>
inline constexpr int kValueChain = sizeof(T) == sizeof(float) ? 22 : kMaxBlock;

/// Products between two looks at the prefetching of what comes next.
inline constexpr int kStretch = 32;

template <bool kOfPairs>
inline Vec multiply_add(Vec a, Vec b, Vec sum) {
  if constexpr (kOfPairs) {
    return dot_pairs(sum, a, b);
  } else {
    return fma(a, b, sum);
  }
}

/// sums[r][c] = sum over k < depth of a[r * kRowStep + k * kDepthStep] * b[k * kPanel + c]. All
/// sums stay in registers (hence inlined): kRows * kVecs chains hide the latency of the
/// multiply-adds.
template <bool kOfPairs, int kRows, int kVecs, int kRowStep, int kDepthStep>
[[gnu::always_inline]] inline void multiply(const float* a, const float* b, int depth,
                                            SpreadRows& near, Vec (&sums)[kRows][kVecs]) {
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int c = 0; c < kVecs; ++c) sums[r][c] = splat(0.0f);
  }
  for (int begin = 0; begin < depth; begin += kStretch) {
    const int end = smaller(begin + kStretch, depth);
    near.step(end - begin);
    for (int k = begin; k < end; ++k) {
      Vec columns[kVecs];
#pragma GCC unroll 2
      for (int c = 0; c < kVecs; ++c) columns[c] = load(b + k * kPanel + c * kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const Vec factor = splat(a[r * kRowStep + k * kDepthStep]);
#pragma GCC unroll 2
        for (int c = 0; c < kVecs; ++c) {
          sums[r][c] = multiply_add<kOfPairs>(factor, columns[c], sums[r][c]);
        }
      }
    }
  }
}

/// The same in chains of `chain` steps.
template <bool kOfPairs, int kRows, int kVecs, int kRowStep, int kDepthStep>
[[gnu::always_inline]] inline void multiply_in_chains(const float* a, const float* b, int depth,
                                                      int chain, SpreadRows& near,
                                                      Vec (&sums)[kRows][kVecs]) {
  constexpr auto kMultiply = multiply<kOfPairs, kRows, kVecs, kRowStep, kDepthStep>;
  kMultiply(a, b, smaller(chain, depth), near, sums);
  for (int begin = chain; begin < depth; begin += chain) {
    Vec before[kRows][kVecs];
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int c = 0; c < kVecs; ++c) before[r][c] = sums[r][c];
    }
    kMultiply(a + begin * kDepthStep, b + begin * kPanel, smaller(chain, depth - begin), near,
              sums);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int c = 0; c < kVecs; ++c) sums[r][c] = before[r][c] + sums[r][c];
    }
  }
}

/// Products of kRows rows and one panel of keys (its first kVecs vectors), added to those at
/// `scores` unless they are the first ones, then times `scale`.
template <bool kOfPairs, int kRows, int kVecs>
inline void score_panel(const float* q, const float* k, int depth, int chain, bool is_first,
                        float scale, SpreadRows& near, float* scores) {
  constexpr int kNow = half_rows(kRows, kVecs);
  Vec sums[kNow][kVecs];
  multiply_in_chains<kOfPairs, kNow, kVecs, 1, kVectorStep>(q, k, depth, chain, near, sums);
#pragma GCC unroll 12
  for (int r = 0; r < kNow; ++r) {
#pragma GCC unroll 2
    for (int c = 0; c < kVecs; ++c) {
      float* slots = scores + r * kScoreStep + c * kLanes;
      const Vec sum = is_first ? sums[r][c] : load(slots) + sums[r][c];
      store(slots, sum * splat(scale));
    }
  }
  if constexpr (kNow < kRows) {
    score_panel<kOfPairs, kRows - kNow, kVecs>(q + kNow, k, depth, chain, is_first, scale, near,
                                               scores + kNow * kScoreStep);
  }
}

/// scores[r][j] = scale * (q_r . k_j) for j < n_keys, rounded up to whole vectors.
template <bool kOfPairs, int kRows>
void score_tile(const float* q, const float* k, int depth, int n_keys, float scale,
                SpreadRows& near, float* scores) {
  const Chains chains = even_chains(depth, kScoreChain<kOfPairs>);
  for (int j = 0; j < n_keys; j += kPanel) {
    const float* panel = k + static_cast<sdpa_i64>(j) * depth;
    const auto run =
        n_keys - j > kLanes ? score_panel<kOfPairs, kRows, 2> : score_panel<kOfPairs, kRows, 1>;
    for (int begin = 0; begin < depth; begin += chains.group_len) {
      const int n = smaller(chains.group_len, depth - begin);
      run(q + begin * kVectorStep, panel + begin * kPanel, n, chains.chain_len, begin == 0,
          begin + n == depth ? scale : 1.0f, near, scores + j);
    }
  }
}

/// out[r][...] = out[r][...] * factors[r] + sum over k < depth of weights[r][k] * values[k][...]
/// for one panel of columns (its first kVecs vectors). Without factors they are 1.
template <bool kOfPairs, int kRows, int kVecs>
inline void add_values_panel(const float* weights, const float* values, int depth, int chain,
                             const float* factors, SpreadRows& near, float* out, int out_step) {
  constexpr int kNow = half_rows(kRows, kVecs);
  Vec sums[kNow][kVecs];
  multiply_in_chains<kOfPairs, kNow, kVecs, kScoreStep, 1>(weights, values, depth, chain, near,
                                                           sums);
#pragma GCC unroll 12
  for (int r = 0; r < kNow; ++r) {
    const Vec factor = splat(factors == nullptr ? 1.0f : factors[r]);
#pragma GCC unroll 2
    for (int c = 0; c < kVecs; ++c) {
      float* numerators = out + r * out_step + c * kLanes;
      store(numerators, fma(load(numerators), factor, sums[r][c]));
    }
  }
  if constexpr (kNow < kRows) {
    add_values_panel<kOfPairs, kRows - kNow, kVecs>(
        weights + kNow * kScoreStep, values, depth, chain,
        factors == nullptr ? nullptr : factors + kNow, near, out + kNow * out_step, out_step);
  }
}

/// The same for all `n_vecs` vectors of columns; values are packed panels of `panel_depth`.
template <bool kOfPairs, int kRows>
void add_values_tile(const float* weights, const float* values, int depth, int panel_depth,
                     int chain, const float* factors, SpreadRows& near, float* out, int n_vecs) {
  // Of one length whatever the depth: where chains end for a row may not depend on the keys that
  // other rows of its tile see.
  const int group_len = kMostInGroup * chain;
  const int out_step = numerator_step(n_vecs);
  for (int c = 0; c < n_vecs; c += 2) {
    const float* panel = values + static_cast<sdpa_i64>(c) * kLanes * panel_depth;
    const auto run = c + 1 < n_vecs ? add_values_panel<kOfPairs, kRows, 2>
                                    : add_values_panel<kOfPairs, kRows, 1>;
    for (int begin = 0; begin < depth; begin += group_len) {
      run(weights + begin, panel + begin * kPanel, smaller(group_len, depth - begin), chain,
          begin == 0 ? factors : nullptr, near, out + c * kLanes, out_step);
    }
  }
}

/// The two products for a number of rows known at run time.
template <bool kOfPairs>
struct TileProducts {
  decltype(&score_tile<kOfPairs, 1>) score;
  decltype(&add_values_tile<kOfPairs, 1>) add_values;
};

template <bool kOfPairs, int kRows = kRowTile>
inline TileProducts<kOfPairs> tile_products(int n_rows) {
  if constexpr (kRows > 1) {
    if (n_rows < kRows) return tile_products<kOfPairs, kRows - 1>(n_rows);
  }
  return {score_tile<kOfPairs, kRows>, add_values_tile<kOfPairs, kRows>};
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
