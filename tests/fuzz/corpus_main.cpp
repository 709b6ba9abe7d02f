// fuzz_corpus FILE...: tries inputs once, without libFuzzer. A file is text, an input a line: its
// bytes in hexadecimal; lines that begin with # are not inputs.
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "fuzz_input.h"

namespace {

std::vector<std::uint8_t> bytes_of_line(const std::string& line) {
  std::vector<std::uint8_t> bytes;
  for (std::size_t i = 0; i + 1 < line.size(); i += 2) {
    bytes.push_back(static_cast<std::uint8_t>(std::stoul(line.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

int try_file(const char* path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(std::string(path) + " cannot be read");
  int tried = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::fprintf(stderr, "%s\n", line.c_str());
    const std::vector<std::uint8_t> bytes = bytes_of_line(line);
    metal_sdpa::fuzz::try_input(bytes.data(), bytes.size());
    ++tried;
  }
  return tried;
}

}  // namespace

int main(int argc, char** argv) {
  int tried = 0;
  for (int i = 1; i < argc; ++i) tried += try_file(argv[i]);
  std::fprintf(stderr, "%d inputs\n", tried);
  return tried == 0 ? 1 : 0;
}
