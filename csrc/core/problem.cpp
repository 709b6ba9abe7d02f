// SdpaProblem and SdpaParams: derived values.
#include "core/layout.h"
#include "core/text.h"
#include "core/validation.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa {
namespace {

TensorLayout packed_layout(std::int64_t heads, std::int64_t rows, std::int64_t width) {
  TensorLayout layout;
  layout.row_stride = width;
  layout.head_stride = saturated_product(rows, width);
  layout.batch_stride = saturated_product(heads, layout.head_stride);
  return layout;
}

void require_positive(const char* field, std::int64_t value) {
  if (value < 1 || value > INT32_MAX) {
    fail_argument("SdpaParams: ", field, ": ", value, ", takes 1 to ", INT32_MAX);
  }
}

}  // namespace

void SdpaProblem::set_packed_layouts() {
  const std::int64_t q_rows_there = has_packed_queries() ? q_total : seq_len;
  std::int64_t kv_rows_there = has_packed_keys() ? kv_total : kv_capacity;
  if (pages.has_value()) kv_rows_there = pages->page_len;
  q = packed_layout(n_heads, q_rows_there, head_dim);
  k = packed_layout(n_kv_heads, kv_rows_there, head_dim);
  v = packed_layout(n_kv_heads, kv_rows_there, value_dim);
  out = packed_layout(n_heads, q_rows_there, value_dim);
}

std::int64_t SdpaProblem::sequence_query_len(std::int64_t b) const {
  if (!query_lengths.empty()) return query_lengths[static_cast<std::size_t>(b)];
  return query_len.value_or(seq_len);
}

std::int64_t SdpaProblem::sequence_q_start(std::int64_t b) const {
  if (!q_starts.empty()) return q_starts[static_cast<std::size_t>(b)];
  if (q_start.has_value()) return *q_start;
  return sequence_kv_len(b) - sequence_query_len(b);
}

void SdpaParams::validate() const {
  require_positive("n_heads", n_heads);
  require_positive("n_kv_heads", n_kv_heads);
  require_positive("head_dim", head_dim);
  require_positive("seq_len", seq_len);
  require_positive("kv_seq_len", kv_seq_len);
  if (n_heads % n_kv_heads != 0) {
    fail_argument("SdpaParams: n_heads: ", n_heads, " is no multiple of n_kv_heads ", n_kv_heads);
  }
  if (kv_capacity < 0 || kv_capacity > INT32_MAX) {
    fail_argument("SdpaParams: kv_capacity: ", kv_capacity,
                  ", takes 0 (the same as kv_seq_len) or ", "kv_seq_len to ", INT32_MAX);
  }
  if (kv_capacity != 0 && kv_capacity < kv_seq_len) {
    fail_argument("SdpaParams: kv_capacity: ", kv_capacity, ", but kv_seq_len is ", kv_seq_len);
  }
  if (!(scale - scale == 0.0f)) {
    fail_argument("SdpaParams: scale: ", scale, ", takes a finite number");
  }
}

SdpaProblem problem_from_params(const SdpaParams& params, const Buffer& q,
                                std::int64_t batch_size) {
  params.validate();
  if (!q.valid()) fail_argument("encode_sdpa: q: the buffer is empty");
  if (batch_size < 1 || batch_size > INT32_MAX) {
    fail_argument("encode_sdpa: batch_size: ", batch_size, ", takes 1 to ", INT32_MAX);
  }
  SdpaProblem problem;
  problem.dtype = q.dtype();
  problem.batch = batch_size;
  problem.n_heads = params.n_heads;
  problem.n_kv_heads = params.n_kv_heads;
  problem.seq_len = params.seq_len;
  problem.kv_capacity = params.kv_capacity != 0 ? params.kv_capacity : params.kv_seq_len;
  problem.head_dim = params.head_dim;
  problem.value_dim = params.head_dim;
  problem.scale = params.scale;
  problem.causal = params.do_causal;
  problem.kv_len = params.kv_seq_len;
  return problem;
}

}  // namespace metal_sdpa
