// Arrays of indices: int32 or int64, read when the call is made.
#pragma once

#include <vector>

#include "array.h"

namespace metal_sdpa::python {

inline constexpr const char* kIndexDTypes = "int32 or int64";

/// An index array, described; UnsupportedDType for another dtype.
void import_indices(Argument argument, PyObject* object, Array& array,
                    Lifetime lifetime = Lifetime::borrowed);

/// The numbers of a one-dimensional index array on the host or on Metal, or of a sequence of ints.
std::vector<std::int64_t> read_indices(Argument argument, nb::handle value);

/// As to_int_or_list, but of arrays it takes only those of indices.
IntOrList read_index_numbers(Argument argument, nb::handle value);

}  // namespace metal_sdpa::python
