// Where the kernels come from: a .metallib beside the binary, else the embedded source.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "metal/embedded_source.h"
#include "metal_support.h"
#include "tests/metal/software_metal.h"

namespace metal_sdpa::test {
namespace {

/// A directory that goes with its scope.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "metallib-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }

  std::string path() const { return path_.string(); }
  void write_metallib(const std::string& text) const {
    std::ofstream(path_ / "metal_sdpa.metallib") << text;
  }

 private:
  std::filesystem::path path_;
};

/// Whether the device's own kernels have a function; opens them.
bool has_kernel(const std::shared_ptr<Backend>& backend, const std::string& name) {
  const std::string origin = backend->library_origin();
  INFO(origin);
  return backend->compile("probe", kEmbeddedShaderSource)->has_function(name);
}

}  // namespace

TEST_CASE("software metal: without a metallib the embedded source is compiled") {
  const TemporaryDirectory directory;
  const auto backend = own_metal_device(directory.path());
  const std::string origin = backend->library_origin();
  INFO(origin);
  CHECK(origin.rfind("embedded source (no " + directory.path(), 0) == 0);
  CHECK(has_kernel(backend, "sdpa"));
  CHECK(has_kernel(backend, "sdpa_bf16"));
  CHECK(has_kernel(backend, "sdpa_merge"));
}

TEST_CASE("software metal: the metallib beside the binary comes first") {
  const TemporaryDirectory directory;
  // A metallib of the software device is a line of magic, then MSL.
  directory.write_metallib(std::string("software-metallib 1\n") + kEmbeddedShaderSource);
  const auto backend = own_metal_device(directory.path());
  CHECK(backend->library_origin() == "metallib " + directory.path() + "/metal_sdpa.metallib");
}

TEST_CASE("software metal: a metallib that does not open falls back, and says why") {
  const TemporaryDirectory directory;
  directory.write_metallib("this is no library {");
  const auto backend = own_metal_device(directory.path());
  const std::string origin = backend->library_origin();
  INFO(origin);
  CHECK(origin.rfind("embedded source (" + directory.path(), 0) == 0);
  CHECK(has_kernel(backend, "sdpa"));
}

TEST_CASE("software metal: one compile serves every set of constants") {
  const auto backend = own_metal_device();
  const auto library = backend->compile("test", kTestKernels);
  software_metal_reset_counts();
  for (const bool negative : {false, true}) {
    for (std::int32_t bias = 0; bias < 5; ++bias) {
      const FunctionConstants constants{{0, negative}, {1, bias}, {2, std::uint32_t{1}}, {3, 0.0f}};
      CHECK(library->make_pipeline("tagged", constants)->name == "tagged");
    }
  }
  CHECK(software_metal_count(SOFTWARE_METAL_PIPELINES) == 10);
  CHECK(software_metal_count(SOFTWARE_METAL_COMPILES) == 0);
}

}  // namespace metal_sdpa::test
