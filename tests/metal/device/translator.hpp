// Rewrites preprocessed Metal Shading Language as C++ for the host.
//
// Attributes of kernel parameters become tables, function constants become variables, threadgroup
// arrays inside kernels become references to memory of the threadgroup, and every kernel gets an
// entry under its host name. All else stays as it is, on its own line and mostly in its own column,
// so that the compiler's messages fit the source.
#pragma once

#include <stdexcept>
#include <string>

namespace software_metal {

/// What the translator itself rejects; `what()` reads like a message of the compiler.
class TranslationError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// `source` has been preprocessed; its line markers are kept. The result includes the shim by the
/// name `msl_host.h`.
std::string translate_shader(const std::string& source);

/// `source` for the type-check: attributes and `kernel` signatures stay legal C++14, address spaces
/// stay real. The result includes the shim by the name `msl_typecheck.h`.
std::string typecheck_form(const std::string& source);

}  // namespace software_metal
