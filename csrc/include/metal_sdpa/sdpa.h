// Scaled-dot-product attention: softmax(Q K^T * scale) V with causal masking and grouped queries.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "metal_sdpa/buffer.h"
#include "metal_sdpa/device.h"
#include "metal_sdpa/encoder.h"
#include "metal_sdpa/export.h"
#include "metal_sdpa/plan.h"

namespace metal_sdpa {

/// Where element [b][h][i][d] of a tensor stands: offset + b * batch_stride + h * head_stride +
/// i * row_stride + d elements from the start of its Buffer. Strides may be zero or negative.
struct TensorLayout {
  std::int64_t offset = 0;
  std::int64_t batch_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t row_stride = 0;
};

/// One attention problem: q [B, Hq, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv], out [B, Hq, L, Dv],
/// lse f32 [B, Hq, L]. Query i of a sequence stands at q_start + i; with `causal` it sees keys at
/// or before its position, else all keys below the sequence's kv_len. B, L and S may be 0: without
/// B or L there is nothing to write, without S every row is 0 and its lse -inf.
struct METAL_SDPA_API SdpaProblem {
  DType dtype = DType::f32;      ///< of q, k, v and out: f32, f16 or bf16
  std::int64_t batch = 1;        ///< B
  std::int64_t n_heads = 1;      ///< Hq, a multiple of n_kv_heads
  std::int64_t n_kv_heads = 1;   ///< Hkv; query head h reads KV head h / (Hq / Hkv)
  std::int64_t seq_len = 1;      ///< L
  std::int64_t kv_capacity = 1;  ///< S: rows that k and v hold a head
  std::int64_t head_dim = 1;     ///< D
  std::int64_t value_dim = 1;    ///< Dv
  TensorLayout q, k, v, out;
  float scale = 1.0f;  ///< finite; 0 and negative are allowed
  bool causal = false;
  bool return_lse = false;               ///< write the natural log of the softmax denominator
  std::int64_t kv_len = 1;               ///< keys in use, 0 to S, where `kv_lengths` is empty
  std::optional<std::int64_t> q_start;   ///< nullopt: kv_len - L, the last query at the last key
  std::vector<std::int64_t> kv_lengths;  ///< [B], or empty
  std::vector<std::int64_t> q_starts;    ///< [B], or empty
  std::string kernel;  ///< a kernel family to force ("sdpa", "sdpa_decode", ...); empty: planner's

  /// Layouts of packed row-major tensors for the shape above.
  void set_packed_layouts();

  std::int64_t sequence_kv_len(std::int64_t b) const;
  std::int64_t sequence_q_start(std::int64_t b) const;
  bool per_sequence() const { return !kv_lengths.empty() || !q_starts.empty(); }
};

/// Memory of a problem. `lse` is used only with return_lse. A tensor without elements needs no
/// Buffer.
struct SdpaOperands {
  Buffer q, k, v, out, lse;
};

/// The engine's front end: packed row-major q and output [batch, n_heads, seq_len, head_dim],
/// k and v [batch, n_kv_heads, kv_capacity, head_dim].
struct METAL_SDPA_API SdpaParams {
  std::int64_t n_heads = 0;
  std::int64_t n_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t seq_len = 0;
  std::int64_t kv_seq_len = 0;
  float scale = 1.0f;
  std::int64_t kv_capacity = 0;  ///< 0 means kv_seq_len
  bool do_causal = true;         ///< query i stands at kv_seq_len - seq_len + i (signed)

  /// InvalidArgument, naming the field, unless every device could run it.
  void validate() const;
};

/// Checks everything about the problem that can be checked without memory. `call` begins the text.
METAL_SDPA_API void validate_problem(const SdpaProblem& problem, const DeviceLimits& limits,
                                     const char* call);

/// The device's plan for a problem; nothing runs. Throws what validate_problem throws.
METAL_SDPA_API Plan plan_sdpa(const Device& device, const SdpaProblem& problem);

/// Validates, plans and records; nothing is recorded where a check fails. The caller commits.
METAL_SDPA_API void encode_sdpa(CommandEncoder& encoder, const KernelRegistry& registry,
                                const Device& device, const Buffer& q, const Buffer& k,
                                const Buffer& v, const Buffer& output, const SdpaParams& params,
                                std::int64_t batch_size);

/// The same for a problem with layouts, lengths and lse.
METAL_SDPA_API void encode_sdpa(CommandEncoder& encoder, const KernelRegistry& registry,
                                const Device& device, const SdpaOperands& operands,
                                const SdpaProblem& problem);

/// Validates, plans, runs and waits. Uses the device's own registry.
METAL_SDPA_API void sdpa(const Device& device, const SdpaOperands& operands,
                         const SdpaProblem& problem);

}  // namespace metal_sdpa
