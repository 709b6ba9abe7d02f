// Checks of cu_seqlens, and what becomes of rows that they leave out.
#include "token_rows.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "core/half.h"
#include "index_array.h"

namespace metal_sdpa::python {
namespace {

[[noreturn]] void fail_memory(const char* call, const char* name) {
  fail(ErrorCode::unsupported, call, ": ", name, ": is in memory that the host does not see");
}

void clear_out(const char* call, const SdpaProblem& problem, const Buffer& out,
               const std::vector<RowRange>& ranges) {
  if (ranges.empty()) return;
  if (out.data() == nullptr) fail_memory(call, "out");
  const auto size = static_cast<std::int64_t>(dtype_size(problem.out_dtype()));
  const auto row_bytes = static_cast<std::size_t>(problem.value_dim * size);
  char* const first = static_cast<char*>(out.data()) + problem.out.offset * size;
  for (const RowRange& range : ranges) {
    for (std::int64_t h = 0; h < problem.n_heads; ++h) {
      for (std::int64_t row = range.begin; row < range.end; ++row) {
        const std::int64_t at = h * problem.out.head_stride + row * problem.out.row_stride;
        std::memset(first + at * size, 0, row_bytes);
      }
    }
  }
}

/// The lse of a row that sees no key.
float empty_lse(const char* call, const SdpaProblem& problem, const Buffer& sinks, std::int64_t h) {
  if (!problem.sinks.has_value()) return -std::numeric_limits<float>::infinity();
  if (sinks.data() == nullptr) fail_memory(call, "sinks");
  const std::int64_t at = problem.sinks->offset + h * problem.sinks->head_stride;
  if (problem.sinks->dtype == DType::f32) return static_cast<const float*>(sinks.data())[at];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(sinks.data())[at];
  return problem.sinks->dtype == DType::f16 ? float_from_f16(bits) : float_from_bf16(bits);
}

/// Calls lse_of(h) for the value of a head's rows in the ranges.
template <typename LseOf>
void fill_lse(const char* call, const SdpaProblem& problem, std::int64_t Tq, const Buffer& lse,
              const std::vector<RowRange>& ranges, const LseOf& lse_of) {
  if (ranges.empty() || !problem.return_lse) return;
  if (lse.data() == nullptr) fail_memory(call, "lse");
  auto* const first = static_cast<float*>(lse.data());
  for (std::int64_t h = 0; h < problem.n_heads; ++h) {
    float* const row = first + h * Tq;
    const float value = lse_of(h);
    for (const RowRange& range : ranges) std::fill(row + range.begin, row + range.end, value);
  }
}

}  // namespace

std::vector<std::int64_t> read_cu_seqlens(Argument argument, nb::handle value) {
  std::vector<std::int64_t> ends = read_indices(argument, value);
  if (ends.empty()) {
    fail_argument(argument.call, ": ", argument.name, ": has no entry, takes [B + 1]");
  }
  if (ends[0] != 0) {
    fail_argument(argument.call, ": ", argument.name, ": begins with ", ends[0], ", takes 0");
  }
  for (std::size_t i = 1; i < ends.size(); ++i) {
    if (ends[i] >= ends[i - 1]) continue;
    fail_argument(argument.call, ": ", argument.name, ": ", ends[i], " behind ", ends[i - 1],
                  " at entry ", i, ", takes numbers that do not fall");
  }
  return ends;
}

void require_rows(Argument argument, const std::vector<std::int64_t>& cu_seqlens, const char* of,
                  std::int64_t rows) {
  if (cu_seqlens.back() <= rows) return;
  fail_argument(argument.call, ": ", argument.name, ": ends with ", cu_seqlens.back(),
                ", takes at most the ", rows, " rows of ", of);
}

void set_query_rows(const char* call, const std::vector<std::int64_t>& cu_seqlens, std::int64_t Tq,
                    SdpaProblem& problem, TokenRows& tokens) {
  require_rows({call, "cu_seqlens_q"}, cu_seqlens, "q", Tq);
  const std::size_t batch = cu_seqlens.size() - 1;
  const auto rows_of = [&](std::size_t b) { return cu_seqlens[b + 1] - cu_seqlens[b]; };
  std::vector<std::int64_t>& lengths = problem.query_lengths;
  if (lengths.empty()) {
    for (std::size_t b = 0; b < batch; ++b) {
      lengths.push_back(problem.query_len.value_or(rows_of(b)));
    }
  }
  problem.query_len.reset();
  check_lengths({call, "query_lengths"}, lengths, "rows of its range", rows_of);
  tokens.packed = true;
  problem.batch = static_cast<std::int64_t>(batch);
  problem.seq_len = 0;
  problem.q_total = Tq;
  problem.q_rows.assign(cu_seqlens.begin(), cu_seqlens.end() - 1);
  for (std::size_t b = 0; b < batch; ++b) {
    problem.seq_len = std::max(problem.seq_len, lengths[b]);
    const RowRange rest{cu_seqlens[b] + lengths[b], cu_seqlens[b + 1]};
    if (rest.begin < rest.end) tokens.unused.push_back(rest);
  }
  if (cu_seqlens.back() < Tq) tokens.unowned.push_back({cu_seqlens.back(), Tq});
}

void show_heads_first(Array& array) {
  const Array tokens = array;
  array.ndim = 4;
  const int axes[3] = {1, 0, 2};
  array.shape[0] = 1;
  array.strides[0] = 0;
  for (int i = 0; i < 3; ++i) {
    array.shape[i + 1] = tokens.shape[axes[i]];
    array.strides[i + 1] = tokens.strides[axes[i]];
  }
}

Array tokens_first(const Array& array) {
  Array tokens = array;
  tokens.ndim = 3;
  const int axes[3] = {2, 1, 3};
  for (int i = 0; i < 3; ++i) {
    tokens.shape[i] = array.shape[axes[i]];
    tokens.strides[i] = array.strides[axes[i]];
  }
  return tokens;
}

void fill_idle_rows(const char* call, const SdpaProblem& problem, std::int64_t Tq,
                    const TokenRows& tokens, bool fresh, const SdpaOperands& operands) {
  clear_out(call, problem, operands.out, tokens.unused);
  fill_lse(call, problem, Tq, operands.lse, tokens.unused,
           [&](std::int64_t h) { return empty_lse(call, problem, operands.sinks, h); });
  if (fresh) clear_out(call, problem, operands.out, tokens.unowned);
  fill_lse(call, problem, Tq, operands.lse, tokens.unowned,
           [](std::int64_t) { return -std::numeric_limits<float>::infinity(); });
}

}  // namespace metal_sdpa::python
