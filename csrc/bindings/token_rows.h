// Rows of sequences that stand one behind the other: which are whose.
#pragma once

#include <vector>

#include "array.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa::python {

/// Rows begin up to, but not including, end.
struct RowRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// Rows of packed queries that no kernel writes.
struct TokenRows {
  bool packed = false;            ///< whether the queries are packed at all
  std::vector<RowRange> unused;   ///< of a sequence, but past its query_length
  std::vector<RowRange> unowned;  ///< of no sequence
};

/// [B + 1] numbers from 0 that do not fall.
std::vector<std::int64_t> read_cu_seqlens(Argument argument, nb::handle value);

/// InvalidArgument where they say more rows than `rows` of the tensor `of`.
void require_rows(Argument argument, const std::vector<std::int64_t>& cu_seqlens, const char* of,
                  std::int64_t rows);

/// How many rows or slots of each sequence are in use: the numbers given for the batch, of which
/// each is 0 to `most(b)` (in words: "its 5 rows").
template <typename Most>
void check_lengths(Argument argument, const std::vector<std::int64_t>& lengths, const char* what,
                   const Most& most) {
  for (std::size_t b = 0; b < lengths.size(); ++b) {
    if (lengths[b] >= 0 && lengths[b] <= most(b)) continue;
    fail_argument(argument.call, ": ", argument.name, ": ", lengths[b], " of sequence ", b,
                  ", takes 0 to the ", most(b), " ", what);
  }
}

/// Sets batch, L and where the rows of each sequence are in q, out and lse; `query_len` and
/// `query_lengths` say how many are in use where the call gave them. q has Tq rows.
void set_query_rows(const char* call, const std::vector<std::int64_t>& cu_seqlens, std::int64_t Tq,
                    SdpaProblem& problem, TokenRows& tokens);

/// [T, H, D] seen as [1, H, T, D].
void show_heads_first(Array& array);

/// The same array as it was before.
Array tokens_first(const Array& array);

/// Where no kernel writes: rows of 0 in out, in lse the sink of a sequence's row, else -inf. Rows
/// of no sequence only in a `fresh` out. The memory is `operands`', whose work is done.
void fill_idle_rows(const char* call, const SdpaProblem& problem, std::int64_t Tq,
                    const TokenRows& tokens, bool fresh, const SdpaOperands& operands);

}  // namespace metal_sdpa::python
