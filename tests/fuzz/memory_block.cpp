// Exact heap blocks and what they hold.
#include "memory_block.h"

#include <cstdlib>
#include <cstring>
#include <limits>

#include "core/half.h"

namespace metal_sdpa::fuzz {
namespace {

constexpr std::uint8_t kPattern = 0xff;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

float wild_value(std::mt19937& rng, float usual) {
  constexpr float kWild[] = {kNaN, kInfinity, -kInfinity, 0.0f, -0.0f};
  return rng() % 24 == 0 ? kWild[rng() % std::size(kWild)] : usual;
}

}  // namespace

const char* values_name(Values values) {
  constexpr const char* kNames[] = {"normal", "wide", "shifted", "integers", "equal", "wild"};
  return kNames[static_cast<int>(values)];
}

void MemoryBlock::Free::operator()(std::uint8_t* p) const { std::free(p); }

MemoryBlock::MemoryBlock(const BlockShape& shape, DType dtype) : shape_(shape), dtype_(dtype) {
  const std::size_t size = dtype_size(dtype);
  const std::size_t lead = static_cast<std::size_t>(shape.lead) * size;
  view_offset_ = static_cast<std::size_t>(shape.before) * size;
  n_bytes_ = view_offset_ + static_cast<std::size_t>(shape.elements) * size;
  allocation_.reset(static_cast<std::uint8_t*>(std::malloc(lead + n_bytes_)));
  data_ = allocation_.get() + lead;
  fill_pattern();
}

void MemoryBlock::fill_pattern() { std::memset(data_, kPattern, n_bytes_); }

void MemoryBlock::set(std::int64_t element, float value) {
  std::uint8_t* const place = view_data() + static_cast<std::size_t>(element) * element_size();
  if (dtype_ == DType::f32) {
    std::memcpy(place, &value, sizeof(value));
    return;
  }
  const std::uint16_t bits = dtype_ == DType::f16 ? f16_from_float(value) : bf16_from_float(value);
  std::memcpy(place, &bits, sizeof(bits));
}

void MemoryBlock::set_nan(std::int64_t element) { set(element, kNaN); }

void MemoryBlock::set_hidden(std::int64_t element) {
  set(element, -std::numeric_limits<float>::infinity());
}

void MemoryBlock::set_byte(std::int64_t element, std::uint8_t value) {
  view_data()[element] = value;
}

void MemoryBlock::fill(Values values, std::mt19937& rng) {
  std::normal_distribution<float> normal;
  const float constant = normal(rng);
  const auto next = [&]() -> float {
    switch (values) {
      case Values::normal:
        return normal(rng);
      case Values::wide:
        return 6 * normal(rng);
      case Values::shifted:
        return 3 + normal(rng);
      case Values::integers:
        return static_cast<float>(static_cast<int>(rng() % 9) - 4);
      case Values::equal:
        return constant;
      case Values::wild:
        return wild_value(rng, normal(rng));
    }
    return 0;
  };
  for (std::int64_t i = 0; i < shape_.elements; ++i) set(i, next());
}

Buffer MemoryBlock::buffer(const Device& device) const {
  const auto all = static_cast<std::int64_t>(n_bytes_ / element_size());
  const Buffer whole = device.wrap({data_, n_bytes_, false, nullptr}, dtype_, {all});
  if (shape_.before == 0) return whole;
  return whole.slice_view(view_offset_, static_cast<std::size_t>(shape_.elements));
}

bool MemoryBlock::holds_pattern(const std::vector<bool>& touched) const {
  for (std::size_t i = 0; i < n_bytes_; ++i) {
    if (data_[i] == kPattern) continue;
    if (i < view_offset_ || !touched[(i - view_offset_) / element_size()]) return false;
  }
  return true;
}

}  // namespace metal_sdpa::fuzz
