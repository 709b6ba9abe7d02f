// Scores of a few query rows against many keys, both as they lie in memory: dot products along D in
// vector registers, several keys and rows at once, and one tree of shuffles for all of their sums.
//
// A vector holds the same few elements of one key once for each of several rows, against as many
// elements of each of these rows: the fewer lanes a row has, the fewer are left to be added up.
#pragma once

#include "cpu/fast/decode_near.h"
#include "cpu/fast/prefill_tile.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// Sums that the inner loops keep in registers, and the most query rows of a tile.
#if defined(__AVX512F__)
inline constexpr int kSums = 16;
inline constexpr int kMostRows = 16;
#elif defined(__aarch64__)
inline constexpr int kSums = 16;
inline constexpr int kMostRows = 8;
#else
inline constexpr int kSums = 8;
inline constexpr int kMostRows = 8;
#endif

/// Keys of a group: scores are [group][row][key].
inline constexpr int kGroupKeys = 4;

/// Rows that share a vector, as measured: elements that are widened have to be widened once for
/// each of them.
template <typename T, int kRows>
constexpr int rows_per_vector() {
  constexpr int kBlocks = kLanes / 4;  // sums are added up within blocks of four lanes
  constexpr bool kIsWidened = sizeof(T) < sizeof(float) && !kPairs<T>;
  if (kIsWidened && (kRows < 3 || kRows == 4)) return 1;
  if (kBlocks < 4) return kIsWidened && kRows > 4 ? 1 : smaller(kRows, kBlocks);
  if (kRows >= (kIsWidened ? 12 : 8)) return 4;
  return smaller(kRows, 2);
}

/// How a tile of kRows rows is multiplied.
template <typename T, int kRows>
struct DotShape {
  static constexpr int kVecRows = rows_per_vector<T, kRows>();
  static constexpr int kVecs = (kRows + kVecRows - 1) / kVecRows;
  static constexpr int kSlots = kLanes / kVecRows;    ///< of a row in a vector: a unit
  static constexpr int kUnit = kSlots * kPerSlot<T>;  ///< its elements
  static constexpr int kUnitSlots = kVecs * kLanes;   ///< of a unit of all queries
  /// Scores of a group, [row][key]. Of a row that only fills a vector they mean nothing.
  static constexpr int kGroupSlots = kVecs * kVecRows * kGroupKeys;
  /// Keys that are read side by side.
  static constexpr int kStepKeys = kSums / kVecs < kGroupKeys ? kSums / kVecs : kGroupKeys;
  /// Groups whose sums fill a vector.
  static constexpr int kGroups = kSlots / 4 > kVecs ? kSlots / 4 / kVecs : 1;
  static constexpr int kKeys = kGroups * kGroupKeys;  ///< a power of two
  static_assert(kGroups * kGroupSlots % kLanes == 0 && kGroupKeys % kStepKeys == 0);
};

template <typename T>
inline Vec add_product(Vec a, Vec b, Vec sum) {
  if constexpr (kPairs<T>) {
    return dot_pairs(sum, a, b);
  } else {
    return fma(a, b, sum);
  }
}

/// Whether keys come near far ahead of n_rows rows.
template <typename T>
inline bool keys_far_ahead(int n_rows) {
  return is_far_ahead(kLineBytes / static_cast<int>(sizeof(T)) / kPerSlot<T>, n_rows);
}

inline constexpr int kMostBlockKeys = kAheadBytes / kLoadBytes * 64;

/// Keys of a block, a multiple of `least`, a power of two that all tiles can take. n_rows are those
/// of the first tile; further ones should find the block in the L1 cache.
template <typename T>
inline int key_block_len(int head_dim, int n_rows, bool is_one_tile, int least) {
  const int row_bytes = head_dim * static_cast<int>(sizeof(T));
  const int most_bytes = is_one_tile && keys_far_ahead<T>(n_rows) ? kAheadBytes : kLoadBytes;
  int keys = kMostBlockKeys;
  while (keys > least && keys * row_bytes > most_bytes) keys /= 2;
  return keys;
}

/// A unit of one key, once for each row of a vector.
template <int kSlots, typename T>
inline Vec load_unit(const T* p) {
  if constexpr (kSlots == kLanes) {
    return load_slots(p);
  } else if constexpr (kPairs<T>) {
    return load_pairs_repeated<kSlots>(p);
  } else {
    return load_repeated<kSlots>(p);
  }
}

/// The same of `n` elements, and zeros.
template <int kSlots, typename T>
inline Vec load_unit_first(const T* p, int n) {
  if constexpr (kSlots == kLanes) {
    return load_slots_first(p, n);
  } else if constexpr (kPairs<T>) {
    return load_pairs_repeated_first<kSlots>(p, n);
  } else {
    return load_repeated_first<kSlots>(p, n);
  }
}

/// Row `row` of kRows, from q on, as units of all rows: [unit][vector][row of the vector][slot].
template <typename T, int kRows>
inline void pack_query(const T* q, int head_dim, int row, float* units) {
  using Shape = DotShape<T, kRows>;
  float* to = units + row * Shape::kSlots;
  constexpr int kElements = kLanes * kPerSlot<T>;
  for (int d = 0; d < head_dim; d += kElements, to += Shape::kVecRows * Shape::kUnitSlots) {
    const int left = head_dim - d;
    const Vec slots = left < kElements ? load_slots_first(q + d, left) : load_slots(q + d);
    float lanes[kLanes];
    store(lanes, slots);
    for (int i = 0; i < Shape::kVecRows && i * Shape::kUnit < left; ++i) {
      __builtin_memcpy(to + i * Shape::kUnitSlots, lanes + i * Shape::kSlots,
                       Shape::kSlots * sizeof(float));
    }
  }
}

/// Adds the sums of chain `i` of a tree to those before it. tree[n] holds 2^n chains that wait for
/// as many others.
template <int kRows, int kVecs, int kLevels>
[[gnu::always_inline]] inline void add_to_tree(int i, Vec (&tree)[kLevels][kRows][kVecs],
                                               Vec (&sums)[kRows][kVecs]) {
  int level = 0;
  for (; (i >> level & 1) != 0; ++level) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < kVecs; ++c) sums[r][c] = tree[level][r][c] + sums[r][c];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kVecs; ++c) tree[level][r][c] = sums[r][c];
  }
}

/// A dot product's chains of f32 additions (prefill_tile.h says why), which are added as a tree.
struct DotChains {
  int n_units;  ///< of a chain
  int n_chains;
};

template <typename T, int kRows>
inline DotChains dot_chains(int head_dim) {
  constexpr int kUnit = DotShape<T, kRows>::kUnit;
  const int n_units = (head_dim + kUnit - 1) / kUnit;
  int level = 0;  // no division: this is done for every block of keys
  while (kScoreChain<kPairs<T>> << level < n_units) ++level;
  return {(n_units + (1 << level) - 1) >> level, 1 << level};
}

/// One chain: sums over the elements begin..end of a row, whose last unit may be a part of one.
/// Returns where the queries of the next one are.
template <typename T, int kRows>
[[gnu::always_inline]] inline const float* add_chain(
    const float* q, const T* const* keys, int begin, int end, NearRows& near,
    Vec (&own)[DotShape<T, kRows>::kVecs][DotShape<T, kRows>::kStepKeys]) {
  using Shape = DotShape<T, kRows>;
  constexpr int kKeys = Shape::kStepKeys;
#pragma GCC unroll 16
  for (int r = 0; r < Shape::kVecs; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kKeys; ++j) own[r][j] = splat(0.0f);
  }
  const auto add_unit = [&](const Vec(&units)[kKeys]) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int r = 0; r < Shape::kVecs; ++r) {
      const Vec query = load(q + r * kLanes);
#pragma GCC unroll 4
      for (int j = 0; j < kKeys; ++j) own[r][j] = add_product<T>(units[j], query, own[r][j]);
    }
    q += Shape::kUnitSlots;
  };
  int d = begin;
  Vec units[kKeys];
  constexpr int kTurn = 2;  // units between two looks at what comes near
  for (; d + kTurn * Shape::kUnit <= end; d += kTurn * Shape::kUnit) {
    near.bring_lines<Prefetch, kLinesOf<kTurn * kKeys * Shape::kUnit * sizeof(T)>>();
#pragma GCC unroll 4
    for (int u = 0; u < kTurn; ++u) {
#pragma GCC unroll 4
      for (int j = 0; j < kKeys; ++j) {
        units[j] = load_unit<Shape::kSlots>(keys[j] + d + u * Shape::kUnit);
      }
      add_unit(units);
    }
  }
  for (; d < end; d += Shape::kUnit) {
    const int left = end - d;
#pragma GCC unroll 4
    for (int j = 0; j < kKeys; ++j) {
      units[j] = left < Shape::kUnit ? load_unit_first<Shape::kSlots>(keys[j] + d, left)
                                     : load_unit<Shape::kSlots>(keys[j] + d);
    }
    add_unit(units);
  }
  return q;
}

/// sums[vector * kGroupKeys + j] = the products of all rows and the key in keys[j]: one chain, or,
/// with kInTree, several.
template <typename T, int kRows, bool kInTree>
inline void add_products(const float* q, const T* const* keys, int head_dim,
                         const DotChains& chains, NearRows& near, Vec* sums) {
  using Shape = DotShape<T, kRows>;
  // Sums of this step alone, so that the compiler keeps them in registers.
  Vec own[Shape::kVecs][Shape::kStepKeys];
  if constexpr (kInTree) {
    Vec tree[5][Shape::kVecs][Shape::kStepKeys];  // 16 chains of 22 units: more than any row has
    const int chain_len = chains.n_units * Shape::kUnit;
    for (int i = 0; i < chains.n_chains; ++i) {
      q = add_chain<T, kRows>(q, keys, i * chain_len, smaller((i + 1) * chain_len, head_dim), near,
                              own);
      add_to_tree(i, tree, own);
    }
  } else {
    add_chain<T, kRows>(q, keys, 0, head_dim, near, own);
  }
#pragma GCC unroll 16
  for (int r = 0; r < Shape::kVecs; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < Shape::kStepKeys; ++j) sums[r * kGroupKeys + j] = own[r][j];
  }
}

/// As score_keys, for products in one chain, or with kInTree in several.
template <typename T, int kRows, bool kInTree>
[[gnu::noinline]] inline void score_keys_in_chains(const float* q, const T* const* k, int begin,
                                                   int end, int n_keys, int head_dim,
                                                   const DotChains& chains, Vec scale,
                                                   NearRows near, float* scores) {
  using Shape = DotShape<T, kRows>;
  float* to = scores + begin / kGroupKeys * Shape::kGroupSlots;
  for (int key = begin; key < end; key += Shape::kKeys) {
    Vec sums[Shape::kGroups * Shape::kVecs * kGroupKeys];
#pragma GCC unroll 4
    for (int group = 0; group < Shape::kGroups; ++group) {
#pragma GCC unroll 4
      for (int step = 0; step < kGroupKeys; step += Shape::kStepKeys) {
        const T* keys[Shape::kStepKeys];
#pragma GCC unroll 4
        for (int j = 0; j < Shape::kStepKeys; ++j) {
          keys[j] = k[smaller(key + group * kGroupKeys + step + j, n_keys - 1)];
        }
        add_products<T, kRows, kInTree>(q, keys, head_dim, chains, near,
                                        sums + group * Shape::kVecs * kGroupKeys + step);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < Shape::kGroups * Shape::kGroupSlots / kLanes; ++i) {
      store(to + i * kLanes, sums_of_parts<Shape::kSlots>(sums + i * Shape::kSlots) * scale);
    }
    to += Shape::kGroups * Shape::kGroupSlots;
  }
  near.bring_all<Prefetch>();
}

/// Scores times `scale` of kRows query rows, packed by pack_query, and keys begin..end; `begin` is
/// a multiple of DotShape::kKeys, and scores are written up to the next multiple behind `end`. Keys
/// at or past `n_keys` repeat the last one below it. Meanwhile `near` comes near.
template <typename T, int kRows>
inline void score_keys(const float* q, const T* const* k, int begin, int end, int n_keys,
                       int head_dim, Vec scale, NearRows near, float* scores) {
  const DotChains chains = dot_chains<T, kRows>(head_dim);
  const auto run = chains.n_chains == 1 ? score_keys_in_chains<T, kRows, false>
                                        : score_keys_in_chains<T, kRows, true>;
  run(q, k, begin, end, n_keys, head_dim, chains, scale, near, scores);
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
