// Turns the fuzzer's bytes into numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>

namespace metal_sdpa::fuzz {

/// Every read takes as few bytes as its range needs, so that a mutation of one byte changes one
/// decision. Past the end a generator goes on that the bytes have seeded, so that short inputs are
/// whole cases, too.
class ByteReader {
 public:
  ByteReader(const std::uint8_t* data, std::size_t size) : next_(data), end_(data + size) {
    for (std::size_t i = 0; i < size; ++i) state_ = mixed(state_ + data[i]);
  }

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

 private:
  /// As many bytes as `choices` distinct values need; 0 stands for 2^64.
  std::uint64_t bytes_for(std::uint64_t choices) {
    std::uint64_t bits = 0;
    for (std::uint64_t left = choices - 1; left != 0; left >>= 8) bits = bits << 8 | next_byte();
    return bits;
  }

  std::uint8_t next_byte() {
    if (next_ != end_) return *next_++;
    state_ += 0x9e3779b97f4a7c15;
    return static_cast<std::uint8_t>(mixed(state_));
  }

  /// SplitMix64 (Steele, Lea, Flood 2014).
  static std::uint64_t mixed(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }

  const std::uint8_t* next_;
  const std::uint8_t* end_;
  std::uint64_t state_ = 0x9e3779b97f4a7c15;
};

}  // namespace metal_sdpa::fuzz
