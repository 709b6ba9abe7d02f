// A vector with a fixed capacity and no allocation, for the short lists of a plan.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <initializer_list>
#include <stdexcept>
#include <utility>

namespace metal_sdpa {

template <typename T, std::size_t N>
class InlineVector {
 public:
  InlineVector() = default;
  InlineVector(std::initializer_list<T> items) {
    for (const T& item : items) push_back(item);
  }

  /// std::length_error past N: the lists have limits known when the code is written.
  void push_back(T item) {
    if (size_ == N) throw std::length_error("InlineVector: capacity exceeded");
    items_[size_++] = std::move(item);
  }

  /// One more item, to be filled in place; std::length_error past N.
  T& emplace_back() {
    if (size_ == N) throw std::length_error("InlineVector: capacity exceeded");
    return items_[size_++];
  }

  /// Replaces the contents; std::length_error past N.
  void assign(const T* first, std::size_t count) {
    if (count > N) throw std::length_error("InlineVector: capacity exceeded");
    std::copy_n(first, count, items_.begin());
    size_ = count;
  }

  std::size_t size() const noexcept { return size_; }
  bool empty() const noexcept { return size_ == 0; }
  T& operator[](std::size_t i) noexcept { return items_[i]; }
  const T& operator[](std::size_t i) const noexcept { return items_[i]; }
  T* begin() noexcept { return items_.data(); }
  T* end() noexcept { return items_.data() + size_; }
  const T* begin() const noexcept { return items_.data(); }
  const T* end() const noexcept { return items_.data() + size_; }

 private:
  std::array<T, N> items_{};
  std::size_t size_ = 0;
};

}  // namespace metal_sdpa
