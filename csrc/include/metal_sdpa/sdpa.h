// Scaled-dot-product attention: softmax(Q K^T * scale) V for grouped queries, with what engines do
// to its scores.
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

  bool operator==(const TensorLayout&) const = default;
};

/// Which keys a row sees: an interval of slots. Query i of a sequence stands at position
/// q_start + i, slot j at key_offset + j * key_stride. A query sees slots kv_start to kv_len whose
/// position lies at most window_left before its own and window_right behind it.
struct METAL_SDPA_API Visibility {
  static constexpr std::int64_t kUnlimited = -1;

  bool causal = false;                     ///< nothing behind the query's own position
  std::int64_t window_left = kUnlimited;   ///< 0 or more positions
  std::int64_t window_right = kUnlimited;  ///< 0 or more positions
  std::int64_t kv_len = 1;                 ///< one past the last slot in use, 0 to S
  std::int64_t kv_start = 0;               ///< first slot in use, 0 to S; at or past kv_len: none
  std::optional<std::int64_t> q_start;     ///< nullopt: the last row in use meets the last key
  std::optional<std::int64_t> query_len;   ///< rows in use, 0 to L; later ones see none
  // [B] each, or empty: then the number above holds for every sequence.
  std::vector<std::int64_t> kv_lengths, kv_starts, q_starts, query_lengths;
  // Of a shard of the keys; other than 0 and 1 they want a given q_start.
  std::int64_t key_offset = 0;
  std::int64_t key_stride = 1;  ///< 1 or more

  std::int64_t sequence_kv_len(std::int64_t b) const {
    return kv_lengths.empty() ? kv_len : kv_lengths[static_cast<std::size_t>(b)];
  }
  std::int64_t sequence_kv_start(std::int64_t b) const {
    return kv_starts.empty() ? kv_start : kv_starts[static_cast<std::size_t>(b)];
  }
  bool per_sequence() const {
    return !kv_lengths.empty() || !q_starts.empty() || !kv_starts.empty() || !query_lengths.empty();
  }
};

/// Where element [b][h][i][j] of a mask over [B, Hq, L, S] stands, in elements from the start of
/// its Buffer; a stride of 0 broadcasts. u8: anything but 0 lets the row see the key. f32, f16 and
/// bf16: added to the score; -inf hides.
struct MaskLayout {
  DType dtype = DType::u8;
  std::int64_t offset = 0;
  std::int64_t batch_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t row_stride = 0;
  std::int64_t key_stride = 1;
};

/// Where the value of (b, h) of a number a head stands, in elements.
struct HeadLayout {
  DType dtype = DType::f32;
  std::int64_t offset = 0;
  std::int64_t batch_stride = 0;
  std::int64_t head_stride = 1;
};

/// What becomes of q . k: times scale; with a softcap c, c * tanh(x / c); less ALiBi's
/// slope * |position of the query - position of the key|; plus an additive mask; hidden by a
/// boolean one. The sink is one more score of the row, which has no value.
struct ScoreTransform {
  float scale = 1.0f;    ///< finite; 0 and negative are allowed
  float softcap = 0.0f;  ///< 0: off, else finite and positive
  std::optional<MaskLayout> mask;
  std::optional<HeadLayout> alibi_slopes;  ///< f32, finite
  std::optional<HeadLayout> sinks;         ///< f32 or q's dtype, finite or -inf; the same for all b
};

/// Sequences whose rows stand one behind the other: q and out are [Hq, Tq, D], lse [Hq, Tq], k and
/// v [Hkv, Tk, D]; batch strides mean nothing there. How many rows a sequence has is what
/// query_lengths and kv_lengths say, of which L and S are the most.
struct PackedRows {
  std::vector<std::int64_t> q_rows;   ///< [B] first row of each in q, out and lse; empty: [B, ...]
  std::int64_t q_total = 0;           ///< Tq
  std::vector<std::int64_t> kv_rows;  ///< [B] first row of each in k and v; empty: [B, ...]
  std::int64_t kv_total = 0;          ///< Tk
};

/// K and V in pages: k [n_pages, Hkv, page_len, D], v [n_pages, Hkv, page_len, Dv], whose batch
/// strides are those of pages. Slot j of a sequence is row j % page_len of the page that its entry
/// j / page_len of the block table names.
struct PageTable {
  DType dtype = DType::i32;  ///< of the table: i32 or i64
  std::int64_t page_len = 1;
  std::int64_t n_pages = 1;
  std::int64_t offset = 0;           ///< of entry [0][0] from the start of its Buffer
  std::int64_t sequence_stride = 0;  ///< between the first entries of two sequences
  std::int64_t entry_stride = 1;
  /// [B] index of each sequence's first entry, in entries; empty: sequence_stride says it.
  std::vector<std::int64_t> starts;
  std::int64_t n_entries = 0;  ///< of one sequence, or of all with starts
  /// Whether entries that any row sees are looked at when the call is made. A replay reads the
  /// table anew, unchecked.
  bool check_entries = true;
};

/// One attention problem: q [B, Hq, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv], out [B, Hq, L, Dv],
/// lse f32 [B, Hq, L]. B, L and S may be 0: without B or L there is nothing to write. A row that
/// sees no key is 0, its lse -inf or its sink.
struct METAL_SDPA_API SdpaProblem : Visibility, ScoreTransform, PackedRows {
  DType dtype = DType::f32;      ///< of q, k and v: f32, f16 or bf16
  bool out_f32 = false;          ///< out is f32 whatever q's dtype is
  std::int64_t batch = 1;        ///< B
  std::int64_t n_heads = 1;      ///< Hq, a multiple of n_kv_heads
  std::int64_t n_kv_heads = 1;   ///< Hkv; query head h reads KV head h / (Hq / Hkv)
  std::int64_t seq_len = 1;      ///< L
  std::int64_t kv_capacity = 1;  ///< S: rows that k and v hold a head
  std::int64_t head_dim = 1;     ///< D
  std::int64_t value_dim = 1;    ///< Dv
  TensorLayout q, k, v, out;
  /// Where k and v are in pages; S is then the most slots of a sequence.
  std::optional<PageTable> pages;
  bool return_lse = false;  ///< write the natural log of the softmax denominator
  std::string kernel;  ///< a kernel family to force ("sdpa", "sdpa_decode", ...); empty: planner's

  /// Layouts of packed row-major tensors for the shape above.
  void set_packed_layouts();

  bool has_packed_queries() const { return !q_rows.empty(); }
  bool has_packed_keys() const { return !kv_rows.empty(); }
  bool per_sequence() const {
    return Visibility::per_sequence() || has_packed_queries() || has_packed_keys() ||
           pages.has_value();
  }
  DType out_dtype() const { return out_f32 ? DType::f32 : dtype; }
  std::int64_t sequence_query_len(std::int64_t b) const;
  /// The given one, or the sequence's kv_len less its rows in use.
  std::int64_t sequence_q_start(std::int64_t b) const;
};

/// Memory of a problem. Those from `lse` on are used only where the problem has them. A tensor
/// without elements needs no Buffer.
struct SdpaOperands {
  Buffer q, k, v, out, lse;
  Buffer mask = {}, sinks = {}, alibi_slopes = {};
  Buffer block_table = {};
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
