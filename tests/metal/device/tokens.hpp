// A tokenizer for preprocessed C++: enough to find declarations and attributes.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace software_metal {

enum class TokenKind { identifier, number, text, punctuation, marker };

struct Token {
  TokenKind kind;
  std::string_view text;
  std::size_t offset;
  unsigned line;  ///< as the line markers count
};

/// Tokens without white space, comments and markers (`# 12 "file"`, pragmas).
std::vector<Token> tokenize(const std::string& source);

/// A range of tokens [begin, end).
struct TokenRange {
  std::size_t begin = 0;
  std::size_t end = 0;
  bool empty() const { return begin >= end; }
};

}  // namespace software_metal
