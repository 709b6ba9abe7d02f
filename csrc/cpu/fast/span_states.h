// Span states in scratch memory: where spans of one row are computed by several work items, each
// puts its states there, and the item that comes last merges them in span order. Shared by the
// plans and the kernels of both families.
#pragma once

#include <cstdint>

namespace metal_sdpa::cpu {

/// Buffer index of u32 counters, one for each set of rows whose items wait for each other: spans
/// that are done. Behind those of sdpa_args.h; the other devices have no such buffer. The states
/// are in SDPA_BUFFER_PARTIAL_O, f32 [B, Hkv, n_spans, rows of a KV head, state_slots]; with a work
/// list (work_table.h) each sequence has room for its own spans and rows only.
constexpr std::uint32_t kBufferSpansDone = 12;

/// The state of one row and one span: f32 slots, in units of 2^maximum.
constexpr int kStateMaximum = 0;  ///< in log2 units
constexpr int kStateSum = 1;
constexpr int kStateNumerators = 16;  ///< Dv of them; the step before fills a cache line

/// Slots of a state: numerators rounded up to what the widest kernel writes at once.
constexpr std::int64_t state_slots(std::int64_t value_dim) {
  return kStateNumerators + (value_dim + 31) / 32 * 32;
}

}  // namespace metal_sdpa::cpu
