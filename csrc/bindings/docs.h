// Docstrings of the functional API, whose signatures Python reads out of them.
#pragma once

#include <string>

#include "parameters.h"

namespace metal_sdpa::python {

inline std::string sdpa_doc() {
  return "sdpa" + signature_text(KeyRows::dense) + R"(
--

softmax(transform(q k^T * scale)) v, with grouped queries; waits for the result.

Arguments
)" + arguments_text(KeyRows::dense) +
         R"(
The order of what happens to a score: scale, softcap, ALiBi, mask; then softmax over the keys that
causal, window, lengths, starts and mask leave, with the sink beside them.

Returns out, or (out, lse), as new arrays of q's framework unless `out` is given; the axes of out lie
in memory in the order of q's. A row that sees no key is 0, its lse -inf or its sink; B, L and S may
be 0. What a row does not see never reaches it, whatever bits it holds. Inputs are neither written
nor copied (except onto Metal).

Errors: InvalidArgument (shapes, lengths, strides, overlap), InvalidType, UnsupportedDType,
Unsupported (memory of other devices; arrays that are more than their memory: that require gradients
while grad mode is on, have a tangent, are traced, masked or lazily negated), BufferAllocationError.)";
}

inline std::string plan_doc() {
  return "plan" + signature_text(KeyRows::dense) + R"(
--

What sdpa() would do with these arguments, in words: kernels, grids, scratch, copies. Nothing runs.

Errors: those of sdpa().)";
}

inline std::string varlen_doc() {
  return "sdpa_varlen" + signature_text(KeyRows::packed) + R"(
--

sdpa() of B sequences of any lengths, whose rows stand one behind the other in q, k and v. The rows
of a sequence have the bits that sdpa() gives it alone.

Arguments
)" + arguments_text(KeyRows::packed) +
         R"(
Returns out [Tq, Hq, Dv], or (out, lse [Hq, Tq]), as sdpa() does. Rows of no sequence are 0 with lse
-inf in new arrays.

Errors: those of sdpa(); cu_seqlens that do not begin at 0, that fall, or that end past the rows.)";
}

inline std::string paged_doc() {
  return "sdpa_paged" + signature_text(KeyRows::paged) + R"(
--

sdpa() on keys and values that lie in pages of a cache, which a block table names. The rows of a
sequence have the bits that sdpa() gives them on its keys gathered; nothing is gathered.

Arguments
)" + arguments_text(KeyRows::paged) +
         R"(
Returns out as q is shaped, or (out, lse [B, Hq, L] or [Hq, Tq]), as sdpa() does. Page numbers are
read while the call runs; int32 and int64 alike, on the host or where q is.

Errors: those of sdpa(); page numbers out of range, unless check_indices is False; kv_lengths over
what the block table reaches.)";
}

}  // namespace metal_sdpa::python
