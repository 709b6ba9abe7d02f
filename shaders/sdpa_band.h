// Which keys a row sees, before a mask takes any out: one interval of slots. Shared by host, CPU
// kernels and shaders; values only, so that no address space matters.
#ifndef METAL_SDPA_SDPA_BAND_H
#define METAL_SDPA_SDPA_BAND_H

#include "shader_types.h"

/// Length and position of one sequence of the batch.
struct SdpaSequence {
  sdpa_i64 q_start;    ///< position of the sequence's query 0; may be negative
  sdpa_i64 kv_len;     ///< one past the last slot in use, 0 to S
  sdpa_i64 kv_start;   ///< first slot in use, 0 to S
  sdpa_i64 query_len;  ///< rows in use, 0 to L; later ones see nothing
  sdpa_i64 q_row;      ///< where packed rows begin in q, out, lse and the mask; else 0
  sdpa_i64 key_begin;  ///< where packed rows begin in k and v, or the table's first entry; else 0
};

/// What every sequence has in common: how far a query sees, in positions, and where slots stand.
/// Slot j stands at position key_offset + j * key_stride. Causal is right = 0.
struct SdpaWindow {
  sdpa_i64 left;   ///< positions before the query's own, 0 to 2^60; -1: all
  sdpa_i64 right;  ///< positions behind it, 0 to 2^60; -1: all
  sdpa_i64 key_offset;
  sdpa_i64 key_stride;  ///< 1 or more
};

/// Slots begin..end; none where both are the same. Neither ever falls from one row to the next.
struct SdpaBand {
  sdpa_i64 begin;
  sdpa_i64 end;
};

SDPA_SHARED sdpa_i64 sdpa_floor_div(sdpa_i64 a, sdpa_i64 b) {
  if (b == 1) return a;
  const sdpa_i64 quotient = a / b;
  return a % b < 0 ? quotient - 1 : quotient;
}

SDPA_SHARED sdpa_i64 sdpa_least(sdpa_i64 a, sdpa_i64 b) { return a < b ? a : b; }
SDPA_SHARED sdpa_i64 sdpa_most(sdpa_i64 a, sdpa_i64 b) { return a < b ? b : a; }

/// The slots that query row i sees. Positions are at most 2^62 from 0 and sides, offsets and
/// strides at most 2^60, so that no sum leaves 64 bits.
SDPA_SHARED SdpaBand sdpa_band(SdpaSequence sequence, SdpaWindow window, sdpa_i64 i) {
  SdpaBand band;
  band.begin = sequence.kv_len;
  band.end = sequence.kv_len;
  if (i >= sequence.query_len) return band;
  const sdpa_i64 at = sequence.q_start + i - window.key_offset;
  if (window.right >= 0) {
    const sdpa_i64 last = sdpa_floor_div(at + window.right, window.key_stride);
    band.end = sdpa_least(band.end, sdpa_most(last + 1, 0));
  }
  sdpa_i64 begin = sequence.kv_start;
  if (window.left >= 0) {
    // The least j whose position is at least as far as that; it may be negative.
    const sdpa_i64 reach = at - window.left + window.key_stride - 1;
    begin = sdpa_most(begin, sdpa_floor_div(reach, window.key_stride));
  }
  band.begin = sdpa_least(begin, band.begin);
  band.end = sdpa_most(band.end, band.begin);
  return band;
}

/// The slots that any of rows first..last sees, last included.
SDPA_SHARED SdpaBand sdpa_band_of_rows(SdpaSequence sequence, SdpaWindow window, sdpa_i64 first,
                                       sdpa_i64 last) {
  SdpaBand band = sdpa_band(sequence, window, first);
  band.end = sdpa_band(sequence, window, sdpa_least(last, sequence.query_len - 1)).end;
  band.end = sdpa_most(band.end, band.begin);
  return band;
}

/// The slots that every one of rows first..last sees, last included.
SDPA_SHARED SdpaBand sdpa_band_of_all(SdpaSequence sequence, SdpaWindow window, sdpa_i64 first,
                                      sdpa_i64 last) {
  SdpaBand band;
  band.begin = sdpa_band(sequence, window, last).begin;
  band.end = sdpa_most(sdpa_band(sequence, window, first).end, band.begin);
  return band;
}

SDPA_SHARED_ASSERT(sizeof(SdpaSequence) == 48, "six 64-bit fields");
SDPA_SHARED_ASSERT(sizeof(SdpaWindow) == 32, "four 64-bit fields");

#endif  // METAL_SDPA_SDPA_BAND_H
