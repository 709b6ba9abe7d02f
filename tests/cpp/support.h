// What every test uses: devices under test, expected errors, random numbers.
#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "metal_sdpa/metal_sdpa.h"

namespace metal_sdpa::test {

/// Device kinds of METAL_SDPA_TEST_DEVICES ("cpu" where it is not set), comma-separated.
std::vector<std::string> device_kinds();

/// The code of the Error that `call` throws; fails the test where it throws none, or where the
/// text does not hold `word`.
ErrorCode error_of(const std::function<void()>& call, const std::string& word = "");

/// Runs `work` and returns what it returns. Where it hangs for so many seconds, the whole program
/// ends with a message: nothing else could end it.
bool within_seconds(int seconds, const std::function<bool()>& work);

/// f32, f16 or bf16 bits of `value`, rounded to nearest even, at element `index` of `buffer`.
void set_element(const Buffer& buffer, std::size_t index, float value);
float get_element(const Buffer& buffer, std::size_t index);

/// Every byte of the buffer.
void fill_bytes(const Buffer& buffer, std::uint8_t value);
std::vector<std::uint8_t> bytes_of(const Buffer& buffer);

/// Normal numbers times `spread`.
void fill_normal(const Buffer& buffer, std::mt19937& rng, float spread);

}  // namespace metal_sdpa::test
