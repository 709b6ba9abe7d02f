// Memory that ends exactly where the problem says it does.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "metal_sdpa/metal_sdpa.h"

namespace metal_sdpa::fuzz {

/// How an operand lies: `lead` elements before the memory that is wrapped (so that it starts at any
/// alignment), then `before` elements that the view leaves out, then the view.
struct BlockShape {
  std::int64_t elements = 1;
  int lead = 0;
  int before = 0;
};

/// What numbers an operand holds.
enum class Values { normal, wide, shifted, integers, equal, wild };
const char* values_name(Values values);

/// A heap block with an exact end, wrapped without a copy. AddressSanitizer sees every access
/// outside of it.
class MemoryBlock {
 public:
  MemoryBlock(const BlockShape& shape, DType dtype);

  void fill_pattern();  ///< 0xff: NaN in every element
  void fill(Values values, std::mt19937& rng);
  void set_nan(std::int64_t element);
  void set_hidden(std::int64_t element);  ///< -inf
  void set_byte(std::int64_t element, std::uint8_t value);

  /// The view of it, on a device.
  Buffer buffer(const Device& device) const;

  std::vector<std::uint8_t> bytes() const { return {data_, data_ + n_bytes_}; }
  std::uint8_t* view_data() const { return data_ + view_offset_; }
  std::int64_t elements() const { return shape_.elements; }
  std::size_t element_size() const { return dtype_size(dtype_); }

  /// Whether everything but the elements in `touched` still holds the pattern.
  bool holds_pattern(const std::vector<bool>& touched) const;

 private:
  void set(std::int64_t element, float value);

  struct Free {
    void operator()(std::uint8_t* p) const;
  };

  BlockShape shape_;
  DType dtype_;
  std::size_t view_offset_ = 0;  ///< bytes from data_ to the view
  std::size_t n_bytes_ = 0;      ///< from data_ on
  std::unique_ptr<std::uint8_t, Free> allocation_;
  std::uint8_t* data_ = nullptr;
};

}  // namespace metal_sdpa::fuzz
