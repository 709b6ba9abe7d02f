// Which rows and keys a team of sdpa_decode or sdpa_prefill has.
#ifndef METAL_SDPA_TEAM_KEYS_H
#define METAL_SDPA_TEAM_KEYS_H

#include <metal_stdlib>

#include "key_rows.h"
#include "sdpa_args.h"
#include "sdpa_problem.h"

namespace metal_sdpa {

/// The packed rows begin..end of one KV head that a team has.
struct TeamRows {
  long first_query;  ///< row of the problem that packed row 0 belongs to
  int group;         ///< G
  bool one_query;    ///< all rows are of one query: nothing to divide, which loads would wait for
  int begin;
  int end;  ///< one past the last that exists

  long query(int packed) const {
    return first_query + (one_query ? 0u : uint(packed) / uint(group));
  }
  int head(int packed) const { return one_query ? packed : int(uint(packed) % uint(group)); }
  /// Offset of a packed row from row 0 of the KV head's first query head.
  long element(SdpaStrides stride, int packed) const {
    return head(packed) * stride.head + query(packed) * stride.row;
  }
};

/// Keys begin..end of a span, counted from its first one.
struct KeyRange {
  int begin;
  int end;
};

/// A span of the keys of a sequence under one KV head.
struct SpanPlace {
  SdpaWorkItem item;  ///< the sequence
  long kv_h;
  long span;
  long first_key;

  /// What of a band lies in the span.
  KeyRange part_of(SdpaBand band) const {
    const long n_keys = long(item.span_len);
    KeyRange range;
    range.begin = 0;
    if (windowed) {
      range.begin = int(metal::min(metal::max(band.begin - first_key, 0l), n_keys));
    }
    range.end = int(metal::min(metal::max(band.end - first_key, 0l), n_keys));
    return range;
  }
};

/// The keys of a span that some row of a team sees, under one KV head, and those that all see.
/// Teams that share rows have the same, and take its tiles by turns.
template <typename T>
struct TeamKeys {
  KeyRows<T> k;  ///< from the first key of the span on, at this lane's first element
  KeyRows<T> v;
  PageList pages;
  KeyRange any;
  KeyRange all;

  /// The key that is read for `key`: the last one for one past it, the first for one before.
  int used(int key) const {
    const int last = metal::min(key, any.end - 1);
    return windowed ? metal::max(last, any.begin) : last;
  }

  /// Whether pages do not hold tiles of kKeys keys whole: then each row takes a look at the table.
  template <int kKeys>
  bool is_scattered() const {
    return pages.page_len % uint(kKeys) != 0;
  }

  /// Where the tile lies, or the last one for one past it; nothing where there is none or no page
  /// holds it whole. Spans are made of whole tiles, so pages of a multiple of kKeys rows are too.
  template <int kKeys>
  TilePlace place_of(int first) const {
    TilePlace place;
    place.page = 0;
    place.row = 0;
    if (!paged || any.end == 0 || is_scattered<kKeys>()) return place;
    const int key = used(first);
    const PagedRow row = pages.place(key);
    place.page = row.page;
    place.row = int(row.slot) - key;
    return place;
  }

  /// Row of K or V of a key of the tile at `place`.
  template <int kKeys>
  device const T* row(thread const KeyRows<T>& rows, TilePlace place, int key) const {
    if (!paged) return rows.start + key * rows.row;
    if (is_scattered<kKeys>()) return rows.at(pages, key);
    return rows.start + (place.page * rows.page + (place.row + key) * rows.row);
  }
};

}  // namespace metal_sdpa

#endif  // METAL_SDPA_TEAM_KEYS_H
