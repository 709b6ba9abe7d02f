// What a person gets to read when the fuzzer finds something.
#pragma once

#include <string>

namespace metal_sdpa::fuzz {

/// What is being tried, as C++ that says the same; printed where a check fails and where a
/// sanitizer reports.
void describe_case(std::string text);

/// Adds a line to the description.
void describe_step(const std::string& line);

/// Prints every case before it runs: for inputs that hang.
void print_every_case();

/// Prints the case and what is wrong with it, and ends the process by a signal.
[[noreturn]] void fail_case(const std::string& what);

}  // namespace metal_sdpa::fuzz
