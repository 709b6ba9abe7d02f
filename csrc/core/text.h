// Builds error texts.
#pragma once

#include <concepts>
#include <string>
#include <string_view>

#include "metal_sdpa/buffer.h"
#include "metal_sdpa/error.h"

namespace metal_sdpa {

inline void append_text(std::string& text, std::string_view part) { text += part; }
inline void append_text(std::string& text, std::integral auto part) {
  text += std::to_string(part);
}
inline void append_text(std::string& text, std::floating_point auto part) {
  text += std::to_string(part);
}
inline void append_text(std::string& text, const Shape& shape) {
  text += '[';
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i != 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  text += ']';
}

/// The parts one after the other; numbers in decimal, shapes in brackets.
template <typename... Parts>
std::string text_of(const Parts&... parts) {
  std::string text;
  (append_text(text, parts), ...);
  return text;
}

template <typename... Parts>
[[noreturn]] void fail(ErrorCode code, const Parts&... parts) {
  throw Error(code, text_of(parts...));
}

template <typename... Parts>
[[noreturn]] void fail_argument(const Parts&... parts) {
  throw Error(ErrorCode::invalid_argument, text_of(parts...));
}

}  // namespace metal_sdpa
