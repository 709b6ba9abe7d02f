// Turns the fuzzer's bytes into numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>

namespace metal_sdpa::fuzz {

/// Every read takes as few bytes as its range needs, so that a mutation of one byte changes one
/// decision. Past the end every read gives the first of its choices.
class ByteReader {
 public:
  ByteReader(const std::uint8_t* data, std::size_t size) : next_(data), end_(data + size) {}

  /// low to high, both included.
  std::int64_t between(std::int64_t low, std::int64_t high) {
    const std::uint64_t choices =
        static_cast<std::uint64_t>(high) - static_cast<std::uint64_t>(low) + 1;
    const std::uint64_t bits = bytes_for(choices);
    const std::uint64_t chosen = choices == 0 ? bits : bits % choices;
    return static_cast<std::int64_t>(static_cast<std::uint64_t>(low) + chosen);
  }

  /// One time in n.
  bool one_in(std::int64_t n) { return between(0, n - 1) == n - 1; }

  template <typename Choices>
  const auto& pick(const Choices& choices) {
    const auto count = static_cast<std::int64_t>(std::size(choices));
    return choices[static_cast<std::size_t>(between(0, count - 1))];
  }

  bool empty() const { return next_ == end_; }

 private:
  /// As many bytes as `choices` distinct values need; 0 stands for 2^64.
  std::uint64_t bytes_for(std::uint64_t choices) {
    std::uint64_t bits = 0;
    for (std::uint64_t left = choices - 1; left != 0 && next_ != end_; left >>= 8) {
      bits = bits << 8 | *next_++;
    }
    return bits;
  }

  const std::uint8_t* next_;
  const std::uint8_t* end_;
};

}  // namespace metal_sdpa::fuzz
