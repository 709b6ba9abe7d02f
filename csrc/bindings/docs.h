// Docstrings of the functional API, whose signatures Python reads out of them.
#pragma once

#include <string>

#include "parameters.h"

namespace metal_sdpa::python {

inline std::string sdpa_doc() {
  return "sdpa" + signature_text() + R"(
--

softmax(transform(q k^T * scale)) v, with grouped queries; waits for the result.

Arguments
)" + arguments_text() +
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
  return "plan" + signature_text() + R"(
--

What sdpa() would do with these arguments, in words: kernels, grids, scratch, copies. Nothing runs.

Errors: those of sdpa().)";
}

}  // namespace metal_sdpa::python
