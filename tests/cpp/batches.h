// Batches of sequences whose rows are packed or whose keys lie in pages, and each sequence alone.
#pragma once

#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "cpu_kernels.h"

namespace metal_sdpa::test {

/// One sequence of a batch.
struct Sequence {
  std::int64_t rows = 1;
  std::int64_t keys = 1;
};

struct Heads {
  std::int64_t n_heads = 4;
  std::int64_t n_kv_heads = 2;
  std::int64_t head_dim = 64;
  std::int64_t value_dim = 64;
};

/// [tokens, heads, width] as [heads, tokens, width].
inline TensorLayout token_major(std::int64_t heads, std::int64_t width) {
  return {0, 0, width, heads * width};
}

/// Shape and lengths; layouts of K and V are the caller's.
inline SdpaProblem batch_problem(DType dtype, const std::vector<Sequence>& sequences,
                                 const Heads& heads) {
  SdpaProblem p;
  p.dtype = dtype;
  p.batch = static_cast<std::int64_t>(sequences.size());
  p.n_heads = heads.n_heads;
  p.n_kv_heads = heads.n_kv_heads;
  p.head_dim = heads.head_dim;
  p.value_dim = heads.value_dim;
  p.scale = 1 / std::sqrt(static_cast<float>(heads.head_dim));
  p.return_lse = true;
  p.seq_len = 0;
  p.kv_capacity = 0;
  for (const Sequence& sequence : sequences) {
    p.query_lengths.push_back(sequence.rows);
    p.kv_lengths.push_back(sequence.keys);
    p.seq_len = std::max(p.seq_len, sequence.rows);
    p.kv_capacity = std::max(p.kv_capacity, sequence.keys);
  }
  return p;
}

/// First rows of sequences one behind the other, `gap` rows of nobody before each; `total` counts
/// those, and as many at the end.
inline std::vector<std::int64_t> first_rows(const std::vector<std::int64_t>& lengths,
                                            std::int64_t gap, std::int64_t& total) {
  std::vector<std::int64_t> firsts;
  total = gap;
  for (const std::int64_t rows : lengths) {
    firsts.push_back(total);
    total += rows + gap;
  }
  return firsts;
}

/// Rows of q and out one sequence behind the other, `gap` rows of nobody before each.
inline void pack_queries(std::int64_t gap, SdpaProblem& p) {
  p.q = token_major(p.n_heads, p.head_dim);
  p.out = token_major(p.n_heads, p.value_dim);
  p.q_rows = first_rows(p.query_lengths, gap, p.q_total);
}

/// The same of k and v.
inline void pack_keys(std::int64_t gap, SdpaProblem& p) {
  p.k = token_major(p.n_kv_heads, p.head_dim);
  p.v = token_major(p.n_kv_heads, p.value_dim);
  p.kv_rows = first_rows(p.kv_lengths, gap, p.kv_total);
}

/// Sequence b of a problem with packed queries as a problem of its own, on the same q and mask. Its
/// K and V are dense, as `k` and `v` say; its out is where the batch's is, its lse [Hq, rows].
inline SdpaProblem alone(const SdpaProblem& p, std::int64_t b, const TensorLayout& k,
                         const TensorLayout& v) {
  const auto at = static_cast<std::size_t>(b);
  SdpaProblem one = p;
  one.batch = 1;
  one.seq_len = p.query_lengths[at];
  one.kv_capacity = one.kv_len = p.kv_lengths[at];
  one.q_start = p.sequence_q_start(b);
  one.kv_start = p.sequence_kv_start(b);
  one.kv_lengths.clear();
  one.query_lengths.clear();
  one.q_starts.clear();
  one.kv_starts.clear();
  one.q.offset += p.q_rows[at] * p.q.row_stride;
  one.out.offset += p.q_rows[at] * p.out.row_stride;
  one.k = k;
  one.v = v;
  if (one.mask.has_value()) one.mask->offset += p.q_rows[at] * one.mask->row_stride;
  if (one.alibi_slopes.has_value()) {
    one.alibi_slopes->offset += b * one.alibi_slopes->batch_stride;
    one.alibi_slopes->batch_stride = 0;
  }
  one.q_rows.clear();
  one.kv_rows.clear();
  one.pages.reset();
  return one;
}

}  // namespace metal_sdpa::test
