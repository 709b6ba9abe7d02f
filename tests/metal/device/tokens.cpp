// The tokenizer.
#include "tokens.hpp"

#include <cctype>
#include <cstdlib>

namespace software_metal {
namespace {

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

class Scanner {
 public:
  explicit Scanner(const std::string& source) : source_(source) {}

  std::vector<Token> scan() {
    while (at_ < source_.size()) step();
    return std::move(tokens_);
  }

 private:
  void step() {
    char c = source_[at_];
    if (c == '\n') {
      ++line_;
      ++at_;
      line_start_ = true;
    } else if (std::isspace(static_cast<unsigned char>(c))) {
      ++at_;
    } else if (c == '#' && line_start_) {
      marker();
    } else {
      line_start_ = false;
      token(c);
    }
  }

  // `# 12 "file"` sets the line; pragmas are skipped.
  void marker() {
    std::size_t end = source_.find('\n', at_);
    if (end == std::string::npos) end = source_.size();
    std::string text = source_.substr(at_ + 1, end - at_ - 1);
    if (text.rfind("line", 0) == 0) text = text.substr(4);
    char* rest = nullptr;
    unsigned long number = std::strtoul(text.c_str(), &rest, 10);
    if (rest != text.c_str()) line_ = static_cast<unsigned>(number) - 1;
    at_ = end;
  }

  void token(char c) {
    std::size_t begin = at_;
    TokenKind kind = TokenKind::punctuation;
    if (c == '"' || c == '\'') {
      kind = TokenKind::text;
      skip_text(c);
    } else if (std::isdigit(static_cast<unsigned char>(c))) {
      kind = TokenKind::number;
      while (at_ < source_.size() && (is_word(source_[at_]) || source_[at_] == '.')) ++at_;
    } else if (is_word(c)) {
      kind = TokenKind::identifier;
      while (at_ < source_.size() && is_word(source_[at_])) ++at_;
    } else if (source_.compare(at_, 2, "::") == 0 || source_.compare(at_, 2, "->") == 0) {
      at_ += 2;
    } else {
      ++at_;
    }
    tokens_.push_back({kind, std::string_view(source_).substr(begin, at_ - begin), begin, line_});
  }

  void skip_text(char quote) {
    for (++at_; at_ < source_.size() && source_[at_] != quote; ++at_) {
      if (source_[at_] == '\\') ++at_;
    }
    ++at_;
  }

  const std::string& source_;
  std::size_t at_ = 0;
  unsigned line_ = 1;
  bool line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(const std::string& source) { return Scanner(source).scan(); }

}  // namespace software_metal
