// msl_tool: what the device does with a shader, by hand.
//
//   msl_tool kernels   [-I DIR]... [-D NAME=VALUE]... FILE   compiles for the host, lists kernels
//   msl_tool host      ...                                   prints the C++ that is compiled
//   msl_tool typecheck ...                                   prints C++14 with real address spaces
//
// Prints the compiler's messages on standard error and exits with 1 where FILE does not compile.
#include <cstdio>
#include <cstring>

#include "process.hpp"
#include "shader_compiler.hpp"
#include "translator.hpp"

using namespace software_metal;

namespace {

constexpr int kUsage = 2;

int list_kernels(const std::string& source, const ShaderOptions& options) {
  ShaderResult result = load_shader(source, options);
  if (result.module == nullptr) {
    std::fputs(result.log.c_str(), stderr);
    return 1;
  }
  for (unsigned i = 0; i < result.module->n_functions; ++i) {
    const msl_host::Function& function = result.module->functions[i];
    std::printf("%s:", function.name);
    for (unsigned a = 0; a < function.n_arguments; ++a) {
      const msl_host::Argument& argument = function.arguments[a];
      bool is_buffer = argument.kind == msl_host::ArgumentKind::buffer;
      std::printf(" %s(%u)=%s", is_buffer ? "buffer" : "threadgroup", argument.index,
                  argument.name);
    }
    std::printf("\n");
  }
  return 0;
}

int print_form(const std::string& source, const ShaderOptions& options, bool for_host) {
  std::string log;
  std::string text =
      for_host ? host_form(source, options, log) : typecheck_text(source, options, log);
  std::fputs(log.c_str(), stderr);
  std::fputs(text.c_str(), stdout);
  return text.empty() ? 1 : 0;
}

int run(const std::string& mode, const std::string& path, const ShaderOptions& options) {
  bool ok = false;
  std::string source = read_file(path, ok);
  if (!ok) {
    std::fprintf(stderr, "msl_tool: cannot read %s\n", path.c_str());
    return kUsage;
  }
  source = "#line 1 \"" + path + "\"\n" + source;
  if (mode == "kernels") return list_kernels(source, options);
  return print_form(source, options, mode == "host");
}

}  // namespace

int main(int argc, char** argv) {
  ShaderOptions options;
  std::string mode = argc > 1 ? argv[1] : "", path;
  for (int i = 2; i < argc; ++i) {
    if (std::strcmp(argv[i], "-I") == 0 && i + 1 < argc) {
      options.include_directories.push_back(argv[++i]);
    } else if (std::strcmp(argv[i], "-D") == 0 && i + 1 < argc) {
      std::string text = argv[++i];
      std::size_t at = text.find('=');
      options.macros.emplace_back(text.substr(0, at),
                                  at == std::string::npos ? "1" : text.substr(at + 1));
    } else {
      path = argv[i];
    }
  }
  bool known = mode == "kernels" || mode == "host" || mode == "typecheck";
  if (!known || path.empty()) {
    std::fprintf(stderr,
                 "usage: msl_tool kernels|host|typecheck [-I DIR]... [-D NAME=VALUE]... FILE\n");
    return kUsage;
  }
  try {
    return run(mode, path, options);
  } catch (const TranslationError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
