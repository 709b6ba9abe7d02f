// The entry points that libFuzzer calls.
#include <sys/stat.h>

#include "fuzz_input.h"
#include "report.h"

// Arguments that are files are inputs to try once: each is printed first.
extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  for (int i = 1; i < *argc; ++i) {
    struct stat info{};
    const bool is_file = stat((*argv)[i], &info) == 0 && S_ISREG(info.st_mode);
    if (is_file) metal_sdpa::fuzz::print_every_case();
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  metal_sdpa::fuzz::try_input(data, size);
  return 0;
}
