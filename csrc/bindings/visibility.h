// What says which keys a query sees, as sdpa() and Graph.update() take it.
#pragma once

#include <array>

#include "convert.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa::python {

/// One number for all sequences, or a list with one for each: to_int_or_list, or what takes less.
using ReadNumbers = IntOrList (*)(Argument, nb::handle);

/// How many entries the sequences of a call were given, for check_counts; -1: one number for all.
struct LengthCounts {
  ReadNumbers read = to_int_or_list;
  std::int64_t kv_lengths = -1;
  std::int64_t kv_starts = -1;
  std::int64_t q_start = -1;
  std::int64_t query_lengths = -1;
};

/// Each sets what it is named after from an argument that is not None, and runs code of the caller
/// (__index__, tolist).
void read_window(Argument argument, nb::handle value, Visibility& visibility);
void read_kv_lengths(Argument argument, nb::handle value, Visibility& visibility,
                     LengthCounts& counts);
void read_kv_starts(Argument argument, nb::handle value, Visibility& visibility,
                    LengthCounts& counts);
void read_q_start(Argument argument, nb::handle value, Visibility& visibility,
                  LengthCounts& counts);
void read_query_lengths(Argument argument, nb::handle value, Visibility& visibility,
                        LengthCounts& counts);

/// InvalidArgument unless every sequence has got its entry.
void check_counts(const char* call, const LengthCounts& counts, std::int64_t batch);

/// Takes one keyword of update(), in sdpa()'s own terms. Python's TypeError for an unknown one.
void change_visibility(nb::handle key, nb::handle value, Visibility& visibility,
                       LengthCounts& counts);

/// InvalidArgument where a list of update() is empty: every sequence has an entry of its own, and
/// which batch that is the core knows.
void require_entries(const LengthCounts& counts);

}  // namespace metal_sdpa::python
