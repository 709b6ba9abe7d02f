// The arguments of sdpa(), sdpa_varlen() and sdpa_paged(), once: parsing, docstrings, the type
// stub, the flags of supports(), the README's table and the list of tests come from these tables.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

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

struct Signature {
  std::size_t n_positional;  ///< the first ones; they must be given
  std::vector<Parameter> parameters;
};

/// plan() has that of sdpa().
const Signature& signature_of(KeyRows keys);

/// What the call is named whose keys lie so, and the call of a name.
const char* call_name(KeyRows keys);
std::optional<KeyRows> find_call(std::string_view name);

/// "(q, k, v, *, causal=False, ...)" with Python's own `$module, /, ` in front.
std::string signature_text(KeyRows keys);

/// A line or more for each argument, as docstrings list them.
std::string arguments_text(KeyRows keys);

}  // namespace metal_sdpa::python
