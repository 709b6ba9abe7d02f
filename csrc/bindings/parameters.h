// The arguments of sdpa() and plan(), once: parsing, docstrings, the type stub, the flags of
// supports(), the README's table and the list of tests come from this table.
#pragma once

#include <array>
#include <string>

#include "sdpa_call.h"

namespace metal_sdpa::python {

struct Parameter {
  const char* name;
  PyObject* SdpaCall::* field;
  const char* type;     ///< as the type stub says it
  const char* value;    ///< the default as Python writes it; empty: the argument must be given
  const char* feature;  ///< of supported_features(); empty: every device takes it
  const char* text;     ///< what it means, in sentences
};

inline constexpr std::size_t kPositional = 3;
inline constexpr std::size_t kParameters = 19;

const std::array<Parameter, kParameters>& parameters();

/// "(q, k, v, *, causal=False, ...)" with Python's own `$module, /, ` in front.
std::string signature_text();

/// A line or more for each argument, as docstrings list them.
std::string arguments_text();

}  // namespace metal_sdpa::python
