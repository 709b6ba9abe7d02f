// Preprocess, translate, compile, cache, load.
#include "shader_compiler.hpp"

#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>

#include "control.hpp"
#include "fiber.hpp"
#include "process.hpp"
#include "report.hpp"
#include "threadgroup.hpp"
#include "translator.hpp"

namespace software_metal {
namespace {

namespace fs = std::filesystem;

std::string environment_or(const char* name, const std::string& fallback) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : fallback;
}

std::string compiler() { return environment_or("SOFTWARE_METAL_CXX", SOFTWARE_METAL_DEFAULT_CXX); }
std::string msl_directory() {
  return environment_or("SOFTWARE_METAL_MSL_DIR", SOFTWARE_METAL_DEFAULT_MSL_DIR);
}

// FNV-1a with 64 bits, twice with different starts: 128 bits of name.
std::string digest(const std::string& text) {
  std::uint64_t a = 0xcbf29ce484222325ull, b = 0x6c62272e07bb0142ull;
  for (unsigned char c : text) {
    a = (a ^ c) * 0x100000001b3ull;
    b = (b ^ c) * 0x100000001b3ull;
    b ^= b >> 29;
  }
  return format("%016llx%016llx", static_cast<unsigned long long>(a),
                static_cast<unsigned long long>(b));
}

// What a machine can do: objects are compiled for the CPU at hand.
std::string cpu_features() {
  bool ok = false;
  std::string info = read_file("/proc/cpuinfo", ok);
  for (const char* key : {"\nflags", "\nFeatures"}) {
    std::size_t at = info.find(key);
    if (at != std::string::npos) return info.substr(at, info.find('\n', at + 1) - at);
  }
  return "";
}

// All that a compile depends on besides the source and its options.
const std::string& toolchain_text() {
  static const std::string& text = *new std::string([] {
    std::string all = compiler() + cpu_features();
    struct stat status {};
    if (stat(compiler().c_str(), &status) == 0) {
      all += format("%lld %lld", static_cast<long long>(status.st_size),
                    static_cast<long long>(status.st_mtime));
    }
    for (const char* name : {"msl_host.h", "msl_types.h", "msl_math.h", "msl_simd.h",
                             "msl_matrix.h", "msl_atomic.h", "../device/shader_abi.hpp"}) {
      bool ok = false;
      all += read_file(msl_directory() + "/" + name, ok);
    }
    return all;
  }());
  return text;
}

std::vector<std::string> common_flags() {
  return {"-x",        "c++",
          "-nostdinc", "-nostdinc++",
          "-w",        "-ferror-limit=50",
          "-fno-color-diagnostics"};
}

std::vector<std::string> code_flags() {
  std::vector<std::string> flags = {
      "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti",
      "-fno-threadsafe-statics", "-ffp-contract=off", "-fno-math-errno",
      // Every operation of half and bfloat rounds, as on the GPU.
      "-Xclang", "-ffloat16-excess-precision=none", "-Xclang", "-fbfloat16-excess-precision=none"};
#if defined(__x86_64__)
  // The instructions for bfloat flush subnormals; __truncsfbf2 of the shim does not.
  flags.insert(flags.end(), {"-march=native", "-mno-avx512bf16", "-mno-avx512fp16"});
#endif
#ifdef SOFTWARE_METAL_ASAN
  flags.insert(flags.end(), {"-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address",
                             "-fsanitize-address-use-after-return=never"});
#else
  // -O0 compiles several times faster and runs several times slower.
  flags.push_back(environment_or("SOFTWARE_METAL_OPTIMIZATION", "-O2"));
#endif
  return flags;
}

std::vector<std::string> option_flags(const ShaderOptions& options) {
  std::vector<std::string> flags = {"-D__METAL__=1", "-D__METAL_VERSION__=310", "-D__METAL_MACOS__=1",
                                    "-D__HAVE_BFLOAT__=1", "-D__HAVE_SIMDGROUP_MATRIX__=1"};
  for (const auto& [name, value] : options.macros) flags.push_back("-D" + name + "=" + value);
  for (const std::string& directory : options.include_directories) {
    flags.push_back("-I" + directory);
  }
  return flags;
}

std::string joined(const std::vector<std::string>& parts) {
  std::string out;
  for (const std::string& part : parts) out += part + "\n";
  return out;
}

// The directory of the cache, made on first use and open to its user alone.
std::string cache_directory() {
  std::string fallback = environment_or("TMPDIR", "/tmp") + "/software-metal-" +
                         std::to_string(static_cast<unsigned>(getuid()));
  std::string directory = environment_or("SOFTWARE_METAL_CACHE_DIR", fallback);
  std::error_code error;
  fs::create_directories(directory, error);
  if (!error && directory == fallback) {
    fs::permissions(directory, fs::perms::owner_all, error);
  }
  return directory;
}

// A directory for the files of one compile; removed with its contents.
class WorkDirectory {
 public:
  WorkDirectory() {
    std::string pattern = cache_directory() + "/work-XXXXXX";
    if (mkdtemp(pattern.data()) != nullptr) path_ = pattern;
  }
  ~WorkDirectory() {
    std::error_code error;
    if (!path_.empty()) fs::remove_all(path_, error);
  }
  WorkDirectory(const WorkDirectory&) = delete;
  WorkDirectory& operator=(const WorkDirectory&) = delete;
  bool ok() const { return !path_.empty(); }
  std::string file(const char* name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

std::vector<std::string> operator+(std::vector<std::string> a, const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// "" with the log set when the preprocessor fails.
std::string preprocess(const std::string& source, const ShaderOptions& options,
                       const WorkDirectory& work, std::string& log) {
  write_file(work.file("source.metal"), "#line 1 \"program_source\"\n" + source);
  std::vector<std::string> command =
      std::vector<std::string>{compiler(), "-E", "-std=c++14"} + common_flags() +
      option_flags(options) +
      std::vector<std::string>{"-I" + msl_directory() + "/include", work.file("source.metal"), "-o",
                               work.file("preprocessed.ii")};
  ProcessResult result = run_process(command, work.file("log"));
  log += result.output;
  bool ok = false;
  return result.status == 0 ? read_file(work.file("preprocessed.ii"), ok) : "";
}

bool compile(const std::string& translated, const WorkDirectory& work, std::string& log) {
  write_file(work.file("translated.cpp"), translated);
  std::vector<std::string> command =
      std::vector<std::string>{compiler()} + common_flags() + code_flags() +
      std::vector<std::string>{"-I" + msl_directory(), work.file("translated.cpp"), "-o",
                               work.file("shader.so"), "-lm"};
  ProcessResult result = run_process(command, work.file("log"));
  log += result.output;
  return result.status == 0;
}

// Compiles into the cache; false with the log set on failure.
bool compile_into(const std::string& path, const std::string& source, const ShaderOptions& options,
                  std::string& log) {
  count(SOFTWARE_METAL_COMPILES);
  WorkDirectory work;
  if (!work.ok()) {
    log = "cannot write to the cache directory " + cache_directory() + "\n";
    return false;
  }
  std::string preprocessed = preprocess(source, options, work, log);
  if (preprocessed.empty()) return false;
  try {
    if (!compile(translate_shader(preprocessed), work, log)) return false;
  } catch (const TranslationError& error) {
    log += std::string(error.what()) + "\n";
    return false;
  }
  // Another process may be doing the same: the rename leaves one whole file in any case.
  return std::rename(work.file("shader.so").c_str(), path.c_str()) == 0;
}

const msl_host::Module* open_module(const std::string& path, std::string& log) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    log += std::string(dlerror()) + "\n";
    return nullptr;
  }
  auto* module = static_cast<const msl_host::Module*>(dlsym(handle, "msl_module"));
  if (module == nullptr || module->abi_version != msl_host::kAbiVersion) return nullptr;
  *module->runtime = &ThreadgroupEngine::runtime();
  return module;
}

}  // namespace

std::string host_form(const std::string& source, const ShaderOptions& options, std::string& log) {
  WorkDirectory work;
  std::string preprocessed = preprocess(source, options, work, log);
  return preprocessed.empty() ? "" : translate_shader(preprocessed);
}

std::string typecheck_text(const std::string& source, const ShaderOptions& options,
                           std::string& log) {
  WorkDirectory work;
  std::string preprocessed = preprocess(source, options, work, log);
  return preprocessed.empty() ? "" : typecheck_form(preprocessed);
}

ShaderResult load_shader(const std::string& source, const ShaderOptions& options) {
  static std::mutex& mutex = *new std::mutex;
  static auto& loaded = *new std::map<std::string, const msl_host::Module*>;
  std::string key = digest(joined(common_flags()) + joined(code_flags()) +
                           joined(option_flags(options)) + toolchain_text() + source);
  ShaderResult result;
  std::lock_guard<std::mutex> lock(mutex);
  auto found = loaded.find(key);
  if (found != loaded.end()) {
    result.module = found->second;
    return result;
  }
  std::string path = cache_directory() + "/" + key + ".so";
  if (!fs::exists(path) && !compile_into(path, source, options, result.log)) return result;
  result.module = open_module(path, result.log);
  if (result.module != nullptr) loaded[key] = result.module;
  return result;
}

}  // namespace software_metal
