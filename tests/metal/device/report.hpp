// Validation reports: fatal by default, recorded on request.
#pragma once

#include <cstdint>
#include <string>

#define SOFTWARE_METAL_EXPORT __attribute__((visibility("default")))

namespace software_metal {

/// Reports a use that Metal forbids: prints the text and aborts, or records it (record mode).
__attribute__((format(printf, 1, 2))) void violation(const char* format, ...);

/// printf into a string.
__attribute__((format(printf, 1, 2))) std::string format(const char* format, ...);

/// A small fast generator (xorshift64*), never 0.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(mix(seed) | 1) {}
  std::uint32_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<std::uint32_t>((state_ * 0x2545f4914f6cdd1dull) >> 32);
  }
  /// In 0..n-1.
  std::uint32_t below(std::uint32_t n) {
    return static_cast<std::uint32_t>((static_cast<std::uint64_t>(next()) * n) >> 32);
  }

 private:
  // splitmix64, so that seeds 1, 2, 3... start far apart.
  static std::uint64_t mix(std::uint64_t x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
  }
  std::uint64_t state_;
};

/// A stream of its own for each caller; the same for the same seed and order of calls.
Random next_random();

}  // namespace software_metal
