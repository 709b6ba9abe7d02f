// Where the rows of K and V of one sequence and KV head lie: a stride apart, or in pages that a
// block table names.
#ifndef METAL_SDPA_KEY_ROWS_H
#define METAL_SDPA_KEY_ROWS_H

#include <metal_stdlib>

#include "sdpa_args.h"
#include "sdpa_problem.h"

constant bool pages_constant [[function_constant(SDPA_CONSTANT_PAGES)]];
constant bool paged = is_function_constant_defined(pages_constant) ? pages_constant : false;

namespace metal_sdpa {

/// A row of K and V in their pages.
struct PagedRow {
  long page;
  uint slot;  ///< row of the page
};

/// Where the keys of a tile lie that one page holds.
struct TilePlace {
  long page;
  int row;  ///< of the page, where key 0 would be
};

/// The pages of one sequence. Nothing of it is used where K and V lie in none.
struct PageList {
  device const uchar* table;
  long first;   ///< the sequence's first entry
  long stride;  ///< of entries
  uint kind;
  uint page_len;
  uint first_key;  ///< of the sequence, from which keys count

  void init(device const uchar* block_table, thread const SdpaArgs& args, SdpaSequence sequence,
            long counted_from) {
    table = block_table;
    first = sequence.key_begin;
    stride = args.table_stride;
    kind = args.table_kind;
    page_len = args.page_len;
    first_key = uint(counted_from);
  }

  PagedRow place(int key) const {
    const uint slot = first_key + uint(key);
    const uint entry = slot / page_len;
    const long index = first + long(entry) * stride;
    PagedRow place;
    place.slot = slot - entry * page_len;
    if (kind == SDPA_INDEX_I64) {
      place.page = reinterpret_cast<device const long*>(table)[index];
    } else {
      place.page = long(reinterpret_cast<device const int*>(table)[index]);
    }
    return place;
  }
};

/// Rows of K or V, in elements.
template <typename T>
struct KeyRows {
  device const T* start;  ///< of the first key, or of row 0 of page 0
  long row;               ///< stride
  long page;              ///< stride

  /// Elements from `start` to a row in a page.
  long in_page(PagedRow place) const { return place.page * page + long(place.slot) * row; }

  /// Key `key`, counted from the first.
  device const T* at(thread const PageList& pages, long key) const {
    return start + (paged ? in_page(pages.place(int(key))) : key * row);
  }
};

/// Rows of a KV head of one sequence; the first key is first_key, where there are no pages.
template <typename T>
KeyRows<T> key_rows(device const T* tensor, long offset, thread const SdpaStrides& stride, long b,
                    long kv_h, SdpaSequence sequence, long first_key) {
  KeyRows<T> rows;
  rows.row = stride.row;
  if (paged) {
    rows.start = tensor + head_start(offset, stride, 0l, kv_h);
    rows.page = stride.batch;
    return rows;
  }
  rows.start = tensor + head_start(offset, stride, b, kv_h) +
               (first_key + first_packed(sequence.key_begin)) * stride.row;
  return rows;
}

}  // namespace metal_sdpa

#endif  // METAL_SDPA_KEY_ROWS_H
