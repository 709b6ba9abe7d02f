// Helpers of the C++ tests.
#include "support.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <sstream>
#include <thread>

#include "core/half.h"

namespace metal_sdpa::test {

std::vector<std::string> device_kinds() {
  const char* text = std::getenv("METAL_SDPA_TEST_DEVICES");
  std::stringstream list(text == nullptr ? "cpu" : text);
  std::vector<std::string> kinds;
  for (std::string kind; std::getline(list, kind, ',');) kinds.push_back(kind);
  return kinds;
}

ErrorCode error_of(const std::function<void()>& call, const std::string& word) {
  try {
    call();
  } catch (const Error& error) {
    const std::string text = error.what();
    INFO("the text is: ", text, "; the word is: ", word);
    CHECK(text.find(word) != std::string::npos);
    return error.code();
  }
  FAIL("no Error was thrown; expected one about ", word);
  return ErrorCode::unsupported;
}

bool within_seconds(int seconds, const std::function<bool()>& work) {
  std::promise<void> ended;
  std::thread watch([seconds, end = ended.get_future()] {
    if (end.wait_for(std::chrono::seconds(seconds)) == std::future_status::ready) return;
    std::fprintf(stderr, "hangs for %d s\n", seconds);
    std::_Exit(1);
  });
  bool fine = false;
  try {
    fine = work();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  ended.set_value();
  watch.join();
  return fine;
}

void set_element(const Buffer& buffer, std::size_t index, float value) {
  if (buffer.dtype() == DType::f32) {
    buffer.host<float>()[index] = value;
    return;
  }
  const bool is_f16 = buffer.dtype() == DType::f16;
  buffer.host<std::uint16_t>()[index] = is_f16 ? f16_from_float(value) : bf16_from_float(value);
}

float get_element(const Buffer& buffer, std::size_t index) {
  if (buffer.dtype() == DType::f32) return buffer.host<float>()[index];
  const std::uint16_t bits = buffer.host<std::uint16_t>()[index];
  return buffer.dtype() == DType::f16 ? float_from_f16(bits) : float_from_bf16(bits);
}

void fill_bytes(const Buffer& buffer, std::uint8_t value) {
  std::memset(buffer.data(), value, buffer.byte_len());
}

std::vector<std::uint8_t> bytes_of(const Buffer& buffer) {
  const auto* first = static_cast<const std::uint8_t*>(buffer.data());
  return {first, first + buffer.byte_len()};
}

void fill_normal(const Buffer& buffer, std::mt19937& rng, float spread) {
  std::normal_distribution<float> normal;
  for (std::size_t i = 0; i < buffer.element_count(); ++i) {
    set_element(buffer, i, normal(rng) * spread);
  }
}

}  // namespace metal_sdpa::test
