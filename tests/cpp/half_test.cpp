// Half and bfloat16 conversion, over all 65,536 patterns and the ties between them.
#include "core/half.h"

#include <cmath>

#include "support.h"

using namespace metal_sdpa;

namespace {

/// The value of a half, by the definition of the format.
double half_value(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 31) return fraction != 0 ? std::nan("") : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

double bfloat_value(std::uint16_t bits) {
  const int exponent = (bits >> 7) & 255;
  const int fraction = bits & 127;
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 255) return fraction != 0 ? std::nan("") : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(fraction, -133);
  return sign * std::ldexp(128 + fraction, exponent - 134);
}

/// Checks the format's two conversions on every pattern and between every two neighbours.
template <typename Widen, typename Narrow, typename Value>
void check_format(Widen widen, Narrow narrow, Value value, std::uint16_t infinity) {
  int wrong = 0;
  for (std::uint32_t pattern = 0; pattern < 65536; ++pattern) {
    const auto bits = static_cast<std::uint16_t>(pattern);
    const double exact = value(bits);
    const float wide = widen(bits);
    if (std::isnan(exact)) {
      wrong += !std::isnan(wide) || !std::isnan(value(narrow(wide)));
      continue;
    }
    wrong += static_cast<double>(wide) != exact || narrow(wide) != bits;
    if ((bits & 0x7fff) >= infinity - 1) continue;
    // Between two neighbours: the middle goes to the even one, anything else to the nearer.
    const auto next = static_cast<std::uint16_t>(bits + 1);
    const float middle = static_cast<float>((exact + value(next)) / 2);
    const std::uint16_t even = (bits & 1) == 0 ? bits : next;
    wrong += narrow(middle) != even;
    wrong += narrow(std::nextafterf(middle, wide)) != bits;
    wrong += narrow(std::nextafterf(middle, widen(next))) != next;
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("f16 conversions are exact, round to nearest even and keep NaN") {
  check_format(float_from_f16, f16_from_float, half_value, 0x7c00);
  CHECK(f16_from_float(65519.996f) == 0x7bff);
  CHECK(f16_from_float(65520.0f) == 0x7c00);
  CHECK(f16_from_float(-1e30f) == 0xfc00);
  CHECK(f16_from_float(0x1p-25f) == 0);
  CHECK(f16_from_float(std::nextafterf(0x1p-25f, 1.0f)) == 1);
  CHECK(f16_from_float(-0.0f) == 0x8000);
}

TEST_CASE("bf16 conversions are exact, round to nearest even and keep NaN") {
  check_format(float_from_bf16, bf16_from_float, bfloat_value, 0x7f80);
  CHECK(bf16_from_float(3.4e38f) == 0x7f80);
  CHECK(bf16_from_float(-0.0f) == 0x8000);
  const float payload_in_low_bits = std::bit_cast<float>(0x7f800001u);
  CHECK(std::isnan(float_from_bf16(bf16_from_float(payload_in_low_bits))));
}
