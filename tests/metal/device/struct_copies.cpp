// Gives structs the copies from other address spaces that MSL has by itself.
#include "report.hpp"
#include "shader_parser.hpp"

namespace software_metal {
namespace {

class Finder {
 public:
  explicit Finder(const std::string& source) : tokens_(tokenize(source)) {}

  std::vector<std::pair<std::size_t, std::string>> find() const {
    std::vector<std::pair<std::size_t, std::string>> insertions;
    for (std::size_t i = 0; i + 2 < tokens_.size(); ++i) {
      if (!is(i, "struct") || tokens_[i + 1].kind != TokenKind::identifier || !is(i + 2, "{")) {
        continue;
      }
      const std::size_t close = closing_brace(i + 2);
      if (close == 0 || has_constructor(i + 1, close)) continue;
      insertions.push_back({tokens_[close].offset, copies(std::string(tokens_[i + 1].text))});
    }
    return insertions;
  }

 private:
  bool is(std::size_t i, std::string_view wanted) const {
    return i < tokens_.size() && tokens_[i].text == wanted;
  }

  std::size_t closing_brace(std::size_t open) const {
    int depth = 0;
    for (std::size_t i = open; i < tokens_.size(); ++i) {
      if (is(i, "{")) ++depth;
      if (is(i, "}") && --depth == 0) return i;
    }
    return 0;
  }

  // Somebody who writes constructors has chosen what a struct is made from.
  bool has_constructor(std::size_t name, std::size_t close) const {
    for (std::size_t i = name + 1; i < close; ++i) {
      if (tokens_[i].text == tokens_[name].text && is(i + 1, "(")) return true;
    }
    return false;
  }

  static std::string copies(const std::string& name) {
    std::string text = format(" %s() = default; %s(const %s&) = default; %s& operator=(const %s&) = "
                              "default;",
                              name.c_str(), name.c_str(), name.c_str(), name.c_str(), name.c_str());
    for (const char* space : {"constant", "const device", "const threadgroup"}) {
      text += format(" %s(%s %s&); %s& operator=(%s %s&);", name.c_str(), space, name.c_str(),
                     name.c_str(), space, name.c_str());
    }
    return text;
  }

  std::vector<Token> tokens_;
};

}  // namespace

std::vector<std::pair<std::size_t, std::string>> find_struct_copies(const std::string& source) {
  return Finder(source).find();
}

}  // namespace software_metal
