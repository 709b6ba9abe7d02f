// Prints the case in hand.
#include "report.h"

#include <cstdio>
#include <cstdlib>

namespace metal_sdpa::fuzz {
namespace {

std::string& current_case() {
  static auto* const text = new std::string;  // reports may come after static destructors
  return *text;
}

bool g_prints_every_case = false;

void print_case() {
  std::fprintf(stderr, "--- the case in hand\n%s---\n", current_case().c_str());
  std::fflush(stderr);
}

}  // namespace

void describe_case(std::string text) {
  current_case() = std::move(text);
  if (g_prints_every_case) print_case();
}

void describe_step(const std::string& line) {
  current_case() += line + "\n";
  if (g_prints_every_case) std::fprintf(stderr, "%s\n", line.c_str());
}

void print_every_case() { g_prints_every_case = true; }

void fail_case(const std::string& what) {
  print_case();
  std::fprintf(stderr, "WRONG: %s\n", what.c_str());
  std::abort();
}

}  // namespace metal_sdpa::fuzz

// AddressSanitizer and UndefinedBehaviorSanitizer call these before they print their report.
extern "C" {
__attribute__((visibility("default"))) void __asan_on_error() { metal_sdpa::fuzz::print_case(); }
__attribute__((visibility("default"))) void __ubsan_on_report() { metal_sdpa::fuzz::print_case(); }
}
