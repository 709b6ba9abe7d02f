// Compiles Metal Shading Language for the host and loads the result.
#pragma once

#include <string>
#include <vector>

#include "shader_abi.hpp"

namespace software_metal {

struct ShaderOptions {
  std::vector<std::string> include_directories;  ///< none for source given at run time
  std::vector<std::pair<std::string, std::string>> macros;
};

struct ShaderResult {
  const msl_host::Module* module = nullptr;  ///< null where the source does not compile
  std::string log;                           ///< the compiler's whole output
};

/// Compiles, or takes the result of an earlier compile with equal text from the cache on disk
/// (SOFTWARE_METAL_CACHE_DIR, else a directory of the user below the system's one for temporary
/// files), and loads it. What is loaded stays loaded. Safe from any thread.
ShaderResult load_shader(const std::string& source, const ShaderOptions& options = {});

/// The C++ text that `source` is compiled as. Throws TranslationError; sets `log` and returns ""
/// when the preprocessor fails.
std::string host_form(const std::string& source, const ShaderOptions& options, std::string& log);

/// The same for the type-check.
std::string typecheck_text(const std::string& source, const ShaderOptions& options,
                           std::string& log);

}  // namespace software_metal
