// Rows of packed sequences: from cu_seqlens, or from a first row and a length each.
#include "capi/packed.h"

#include <algorithm>
#include <vector>

#include "core/text.h"

namespace metal_sdpa::capi {
namespace {

using Numbers = std::vector<std::int64_t>;

/// One side of a packed problem, q or k.
struct Side {
  const char* call;
  const char* cu_name;
  const char* rows_name;
  const char* total_name;
  const char* lengths_name;
  const std::int64_t* cu_seqlens;
  const std::int64_t* rows;
  std::int64_t total;
};

Numbers read_numbers(const std::int64_t* numbers, std::int64_t count) {
  if (numbers == nullptr) return {};
  return Numbers(numbers, numbers + count);
}

void check_cu_seqlens(const Side& side, const Numbers& ends) {
  if (ends.front() != 0) {
    fail_argument(side.call, ": ", side.cu_name, ": begins with ", ends.front(), ", takes 0");
  }
  for (std::size_t i = 1; i < ends.size(); ++i) {
    if (ends[i] >= ends[i - 1]) continue;
    fail_argument(side.call, ": ", side.cu_name, ": ", ends[i], " behind ", ends[i - 1],
                  " at entry ", i, ", takes numbers that do not fall");
  }
  if (side.total == METAL_SDPA_UNSET || ends.back() <= side.total) return;
  fail_argument(side.call, ": ", side.cu_name, ": ends with ", ends.back(), ", takes at most ",
                side.total_name, " ", side.total);
}

/// Lengths that the call gives, each within its sequence's range; else the ranges themselves.
void set_lengths(const Side& side, const Numbers& ends, std::int64_t one, Numbers& lengths) {
  const bool given = !lengths.empty() || one != METAL_SDPA_UNSET;
  if (lengths.empty()) lengths.assign(ends.size() - 1, one);
  for (std::size_t b = 0; b < lengths.size(); ++b) {
    const std::int64_t range = ends[b + 1] - ends[b];
    if (!given) lengths[b] = range;
    if (lengths[b] >= 0 && lengths[b] <= range) continue;
    fail_argument(side.call, ": ", side.lengths_name, ": ", lengths[b], " of sequence ", b,
                  ", takes 0 to the ", range, " rows of its range");
  }
}

/// Sets first rows, lengths and total of one side. `one`: the length of all, or UNSET.
void set_rows(const Side& side, std::int64_t batch, std::int64_t one, Numbers& lengths,
              Numbers& rows, std::int64_t& total) {
  if (side.cu_seqlens != nullptr && side.rows != nullptr) {
    fail_argument(side.call, ": ", side.rows_name, ": are given, and so is ", side.cu_name);
  }
  if (side.cu_seqlens == nullptr && side.rows == nullptr) {
    if (side.total == METAL_SDPA_UNSET) return;
    fail_argument(side.call, ": ", side.total_name, ": ", side.total, ", but neither ",
                  side.cu_name, " nor ", side.rows_name, " are given");
  }
  total = side.total;
  if (side.rows != nullptr) {
    if (total == METAL_SDPA_UNSET) fail_argument(side.call, ": ", side.total_name, ": is not set");
    rows = read_numbers(side.rows, batch);
    return;
  }
  const Numbers ends = read_numbers(side.cu_seqlens, batch + 1);
  check_cu_seqlens(side, ends);
  set_lengths(side, ends, one, lengths);
  rows.assign(ends.begin(), ends.end() - 1);
  if (total == METAL_SDPA_UNSET) total = ends.back();
}

/// An extent that may be left to the lengths where rows are packed or in pages.
std::int64_t extent_of(const char* call, const char* name, std::int64_t given, bool derived,
                       const Numbers& lengths, std::int64_t one) {
  if (given != METAL_SDPA_UNSET) return given;
  if (derived && !lengths.empty()) return *std::max_element(lengths.begin(), lengths.end());
  if (derived && one != METAL_SDPA_UNSET) return one;
  fail_argument(call, ": ", name, ": is not set");
}

}  // namespace

void set_query_rows(const char* call, const metal_sdpa_problem& given, SdpaProblem& problem) {
  const Side side{call,         "cu_seqlens_q",  "q_rows",
                  "q_total",    "query_lengths", given.cu_seqlens_q,
                  given.q_rows, given.q_total};
  problem.query_lengths = read_numbers(given.query_lengths, problem.batch);
  set_rows(side, problem.batch, given.query_len, problem.query_lengths, problem.q_rows,
           problem.q_total);
  const bool packed = side.cu_seqlens != nullptr || side.rows != nullptr;
  const std::int64_t one = packed && problem.batch == 0 ? 0 : given.query_len;
  problem.seq_len = extent_of(call, "seq_len", given.seq_len, packed, problem.query_lengths, one);
  if (given.query_len != METAL_SDPA_UNSET) problem.query_len = given.query_len;
}

void set_key_rows(const char* call, const metal_sdpa_problem& given, SdpaProblem& problem) {
  const Side side{call,         "cu_seqlens_k",     "kv_rows",     "kv_total",
                  "kv_lengths", given.cu_seqlens_k, given.kv_rows, given.kv_total};
  problem.kv_lengths = read_numbers(given.kv_lengths, problem.batch);
  set_rows(side, problem.batch, given.kv_len, problem.kv_lengths, problem.kv_rows,
           problem.kv_total);
  const bool packed = side.cu_seqlens != nullptr || side.rows != nullptr || given.pages != nullptr;
  const std::int64_t one = packed && problem.batch == 0 ? 0 : given.kv_len;
  problem.kv_capacity =
      extent_of(call, "kv_capacity", given.kv_capacity, packed, problem.kv_lengths, one);
  problem.kv_len = given.kv_len == METAL_SDPA_UNSET ? problem.kv_capacity : given.kv_len;
}

}  // namespace metal_sdpa::capi
