// Which rows of q are written, and where rows of K and V lie: dense, packed one sequence behind the
// other, or in pages. Compiled into kernels of every instruction set: nothing here is a function
// that a linker could take from another.
#pragma once

#include <cstdint>

#include "metal_sdpa/native_kernel.h"
#include "shaders/sdpa_args.h"

namespace metal_sdpa::cpu {

/// Query rows of a sequence that are to be written, of one head.
[[gnu::always_inline]] inline sdpa_i64 written_rows(const SdpaArgs& args,
                                                    const SdpaSequence& sequence) {
  return args.packed_rows != 0 ? sequence.query_len : sdpa_i64{args.seq_len};
}

/// Rows of K or V of one sequence and KV head, in elements from the start of the tensor's memory.
struct KeyPlace {
  sdpa_i64 first;  ///< row 0, or row 0 of page 0
  sdpa_i64 row_stride;
  sdpa_i64 page_stride;
  sdpa_i64 page_len;     ///< 0: there are no pages
  const void* table;     ///< of page numbers
  sdpa_u32 table_kind;   ///< SDPA_INDEX_*
  sdpa_i64 first_entry;  ///< of the sequence
  sdpa_i64 entry_stride;
};

[[gnu::always_inline]] inline KeyPlace key_place(const NativeLaunch& launch, const SdpaArgs& args,
                                                 const SdpaSequence& sequence, sdpa_i64 offset,
                                                 const SdpaStrides& stride, sdpa_i64 b,
                                                 sdpa_i64 kv_h) {
  KeyPlace place{};
  place.first = offset + kv_h * stride.head;
  place.row_stride = stride.row;
  if (args.page_len == 0) {
    place.first += b * stride.batch + sequence.key_begin * stride.row;
    return place;
  }
  place.page_stride = stride.batch;
  place.page_len = args.page_len;
  place.table = launch.bindings[SDPA_BUFFER_PAGES].data;
  place.table_kind = args.table_kind;
  place.first_entry = sequence.key_begin;
  place.entry_stride = args.table_stride;
  return place;
}

/// Row 0 of the page that a sequence's entry `entry` names.
[[gnu::always_inline]] inline sdpa_i64 page_start(const KeyPlace& place, sdpa_i64 entry) {
  const sdpa_i64 index = place.first_entry + entry * place.entry_stride;
  const sdpa_i64 page = place.table_kind == SDPA_INDEX_I64
                            ? static_cast<const std::int64_t*>(place.table)[index]
                            : static_cast<const std::int32_t*>(place.table)[index];
  return place.first + page * place.page_stride;
}

/// Row j.
[[gnu::always_inline]] inline sdpa_i64 row_start(const KeyPlace& place, sdpa_i64 j) {
  if (place.page_len == 0) return place.first + j * place.row_stride;
  return page_start(place, j / place.page_len) + j % place.page_len * place.row_stride;
}

}  // namespace metal_sdpa::cpu
