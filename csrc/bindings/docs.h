// Docstrings of the functional API, whose signatures Python reads out of them.
#pragma once

namespace metal_sdpa::python {

inline constexpr const char* kSdpaDoc =
    R"(sdpa($module, /, q, k, v, *, causal=False, q_start=None, scale=None, mask=None, window=None, softcap=None, sinks=None, kv_lengths=None, out=None, return_lse=False, device=None)
--

softmax(q k^T * scale) v, with causal masking and grouped queries; waits for the result.

Arguments
  q           [B, Hq, L, D], f32, f16 or bf16; NumPy or anything with __dlpack__ (torch, JAX, MLX).
              A NumPy uint16 array holds bfloat16 bits; ml_dtypes.bfloat16 works too.
  k, v        [B, Hkv, S, D] and [B, Hkv, S, Dv], of q's dtype. Query head h reads KV head
              h / (Hq / Hkv). Any strides, as long as the last dimension is contiguous.
  causal      query i of a sequence stands at q_start + i and sees keys up to its position.
  q_start     int, or one for each sequence; may be negative. Default: kv_len - L, so that the last
              query meets the last key. torch's is_causal is q_start=0.
  scale       of the scores, finite. Default: 1 / sqrt(D).
  kv_lengths  keys in use, 0 to S: an int, or one for each sequence. Default: S.
  out         [B, Hq, L, Dv] array of q's dtype to write into; must be writable and overlap neither
              itself nor an input.
  return_lse  also return the natural log of the softmax denominators, f32 [B, Hq, L].
  device      a Device, "cpu", "metal" or "auto". Default: where the arrays are. On Metal, host
              arrays are copied in and out.
  mask, window, softcap, sinks
              not built yet: Unsupported.

Returns out, or (out, lse), as new arrays of q's framework unless `out` is given. A row that sees no
key is 0, its lse -inf; B, L and S may be 0. Inputs are neither written nor copied (except onto
Metal).

Errors: InvalidArgument (shapes, lengths, strides, overlap), InvalidType, UnsupportedDType,
Unsupported (memory of other devices; arrays that are more than their memory: that require gradients
while grad mode is on, have a tangent, are traced, masked or lazily negated), BufferAllocationError.)";

inline constexpr const char* kPlanDoc =
    R"(plan($module, /, q, k, v, *, causal=False, q_start=None, scale=None, mask=None, window=None, softcap=None, sinks=None, kv_lengths=None, out=None, return_lse=False, device=None)
--

What sdpa() would do with these arguments, in words: kernels, grids, scratch, copies. Nothing runs.

Errors: those of sdpa().)";

}  // namespace metal_sdpa::python
