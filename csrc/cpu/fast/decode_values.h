// Numerators of a span: weights times values, V as it lies in memory, a key's weight broadcast.
#pragma once

#include "cpu/fast/decode_softmax.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

/// Whether values come near far ahead of n_rows rows.
template <typename T>
inline bool values_far_ahead(int n_rows) {
  return is_far_ahead(kLineBytes / static_cast<int>(sizeof(T)), n_rows);
}

/// Keys whose weighted values are added in registers, from zero, before they go to memory: it ends
/// a chain of f32 additions (prefill_tile.h says why), of which 16-bit results allow longer ones,
/// and their rows of V stay in the L1 cache for the next columns. A multiple of kGroupKeys. n_rows
/// are those of the first tile. The same for every processor of an instruction set, since it
/// decides bits.
template <typename T>
inline int value_block_len(int value_dim, int n_rows) {
  const int row_bytes = value_dim * static_cast<int>(sizeof(T));
  const int line_slots = kLineBytes / static_cast<int>(sizeof(T));
  const int most_bytes = line_slots * n_rows > kMostSlotsToLoad ? kAheadBytes : kLoadBytes;
  constexpr int kMostKeys = sizeof(T) < sizeof(float) ? 64 : 24;
  const int keys = most_bytes / row_bytes / kGroupKeys * kGroupKeys;
  return larger(smaller(keys, kMostKeys), kGroupKeys);
}

/// Blocks whose sums are added one after the other, then to those of earlier such groups.
inline constexpr int kGroupBlocks = 8;

/// Where the sums of a block go.
struct BlockPlace {
  bool is_first_of_group;
  bool is_last_of_group;
  bool is_in_first_group;
};

inline BlockPlace place_of_block(int block, int n_blocks) {
  const int in_group = block % kGroupBlocks;
  return {in_group == 0, in_group == kGroupBlocks - 1 || block == n_blocks - 1,
          block < kGroupBlocks};
}

/// Adds the sums of a block to its group's, and a whole group's to the numerators.
inline void add_to(float* numerators, float* group, Vec sums, const BlockPlace& place) {
  if (!place.is_first_of_group) sums = load(group) + sums;
  if (!place.is_last_of_group) return store(group, sums);
  if (!place.is_in_first_group) sums = load(numerators) + sums;
  store(numerators, sums);
}

/// One block of keys, from `begin` on, a multiple of kGroupKeys.
template <typename T>
struct ValueBlock {
  const float* weights;  ///< [group][row][key] of the tile, from the span's first key on
  int group_slots;
  const T* const* v;  ///< rows, from the first key on
  int begin;
  int end;
  int value_dim;
  float* const* states;  ///< of the tile's rows
  float* groups;         ///< sums of a group of blocks, group_step slots a row
  int group_step;
  BlockPlace place;
};

/// Weights of kRows rows and the keys of a group. Where registers allow, four are read at once and
/// each is spread by a shuffle, which leaves the loads to the values.
template <int kRows>
class GroupWeights {
 public:
  explicit GroupWeights(const float* weights) : weights_(weights) {
    if constexpr (kInRegisters) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) fours_[r] = load_four(weights + r * kGroupKeys);
    }
  }

  /// The weight of row `row` and the group's key `key`, in all lanes.
  Vec operator()(int row, int key) const {
    if constexpr (!kInRegisters) return splat(weights_[row * kGroupKeys + key]);
    switch (key) {
      case 0:
        return splat_lane<0>(fours_[row]);
      case 1:
        return splat_lane<1>(fours_[row]);
      case 2:
        return splat_lane<2>(fours_[row]);
      default:
        return splat_lane<3>(fours_[row]);
    }
  }

 private:
  static constexpr bool kInRegisters = kSums > 8;

  const float* weights_;
  Vec fours_[kInRegisters ? kRows : 1];
};

/// kVecs vectors of columns from `column` on; `tail` is the number of the last one's where they are
/// fewer than kLanes, else 0. Weights stay f32 for every dtype: rounding them to bf16 would cost a
/// row whose largest values hang on one small weight more than the output's own rounding leaves
/// room for.
template <typename T, int kRows, int kVecs>
[[gnu::always_inline]] inline void add_values(const ValueBlock<T>& block, int column, int tail,
                                              NearRows& to_near) {
  NearRows near = to_near;  // in registers
  Vec sums[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < kVecs; ++c) sums[r][c] = splat(0.0f);
  }
  constexpr int kKeyBytes = kVecs * kLanes * static_cast<int>(sizeof(T));
  constexpr bool kByKey = kKeyBytes >= kLineBytes;
  const auto add_key = [&](int key, const GroupWeights<kRows>& weights,
                           int j) __attribute__((always_inline)) {
    if constexpr (kByKey) near.bring_lines<Prefetch, kLinesOf<kKeyBytes>>();
    const T* from = block.v[key] + column;
    Vec values[kVecs];
#pragma GCC unroll 16
    for (int c = 0; c < kVecs; ++c) {
      const bool is_part = c == kVecs - 1 && tail != 0;
      values[c] = is_part ? load_first(from + c * kLanes, tail) : load(from + c * kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec weight = weights(r, j);
#pragma GCC unroll 16
      for (int c = 0; c < kVecs; ++c) sums[r][c] = fma(values[c], weight, sums[r][c]);
    }
  };
  const float* weights = block.weights + block.begin / kGroupKeys * block.group_slots;
  int key = block.begin;
  for (; key + kGroupKeys <= block.end; key += kGroupKeys, weights += block.group_slots) {
    if constexpr (!kByKey) near.bring_lines<Prefetch, kLinesOf<kGroupKeys * kKeyBytes>>();
    const GroupWeights<kRows> group(weights);
#pragma GCC unroll 4
    for (int j = 0; j < kGroupKeys; ++j) add_key(key + j, group, j);
  }
  if (key < block.end) {
    const GroupWeights<kRows> group(weights);
    for (int j = 0; key + j < block.end; ++j) add_key(key + j, group, j);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    float* numerators = block.states[r] + kStateNumerators + column;
    float* group = block.groups + r * block.group_step + column;
#pragma GCC unroll 16
    for (int c = 0; c < kVecs; ++c) {
      add_to(numerators + c * kLanes, group + c * kLanes, sums[r][c], block.place);
    }
  }
  to_near = near;
}

/// n_vecs, at most kVecs, vectors of columns.
template <typename T, int kRows, int kVecs>
inline void add_vectors(const ValueBlock<T>& block, int column, int n_vecs, int tail,
                        NearRows& near) {
  if constexpr (kVecs > 1) {
    if (n_vecs < kVecs) return add_vectors<T, kRows, kVecs - 1>(block, column, n_vecs, tail, near);
  }
  add_values<T, kRows, kVecs>(block, column, tail, near);
}

/// All columns of the block, in as few turns as registers allow, about as many in each. Meanwhile
/// `near` comes near.
template <typename T, int kRows>
inline void add_block(const ValueBlock<T>& block, NearRows near) {
  constexpr int kMostVecs = smaller(kSums / (kRows == 3 ? 4 : kRows), 8);
  int n_vecs = (block.value_dim + kLanes - 1) / kLanes;
  int turns = (n_vecs + kMostVecs - 1) / kMostVecs;
  int column = 0;
  for (; turns > 0; --turns) {
    const int now = (n_vecs + turns - 1) / turns;
    n_vecs -= now;
    add_vectors<T, kRows, kMostVecs>(block, column, now, n_vecs == 0 ? block.value_dim % kLanes : 0,
                                     near);
    column += now * kLanes;
  }
  near.bring_all<Prefetch>();
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
