// Runs a program and keeps what it prints.
#pragma once

#include <string>
#include <vector>

namespace software_metal {

struct ProcessResult {
  int status = -1;  ///< exit status; -1 where the program could not be run
  std::string output;
};

/// Runs `arguments[0]` (searched in PATH) with standard output and standard error in one file.
ProcessResult run_process(const std::vector<std::string>& arguments,
                          const std::string& output_path);

std::string read_file(const std::string& path, bool& ok);
bool write_file(const std::string& path, const std::string& text);

}  // namespace software_metal
