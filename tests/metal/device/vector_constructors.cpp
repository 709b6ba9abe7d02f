// Finds constructor calls of vector types, which Clang has no syntax for outside of MSL.
#include <set>

#include "shader_parser.hpp"

namespace software_metal {
namespace {

class Finder {
 public:
  explicit Finder(const std::string& source) : tokens_(tokenize(source)) {}

  std::vector<std::pair<std::size_t, std::string>> find() {
    collect_aliases();
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      if (tokens_[i].kind != TokenKind::identifier || is(i - 1, ".") || is(i - 1, "->")) continue;
      std::size_t after = end_of_vector(i);
      if (after == 0 || !is_call(after) || is(begin_of_name(i) - 1, "operator")) continue;
      insertions_.push_back({tokens_[begin_of_name(i)].offset, "msl_make<"});
      insertions_.push_back({tokens_[after].offset, ">"});
    }
    return std::move(insertions_);
  }

 private:
  std::string_view text(std::size_t i) const { return i < tokens_.size() ? tokens_[i].text : ""; }
  bool is(std::size_t i, std::string_view wanted) const { return text(i) == wanted; }

  // `float2 (&x)[4]` and `float2 (*x)[4]` are declarations.
  bool is_call(std::size_t i) const { return is(i, "(") && !is(i + 1, "&") && !is(i + 1, "*"); }

  // `typedef ... vec<T, 2> Name;` and `using Name = ... vec<T, 2>;`, or of a type such as float4.
  void collect_aliases() {
    for (std::size_t i = 0; i + 3 < tokens_.size(); ++i) {
      if (is(i, "typedef")) {
        std::size_t end = end_of_vector(skip_qualifiers(i + 1));
        if (end != 0 && is(end + 1, ";")) aliases_.insert(std::string(text(end)));
      } else if (is(i, "using") && is(i + 2, "=")) {
        std::size_t end = end_of_vector(skip_qualifiers(i + 3));
        if (end != 0 && is(end, ";")) aliases_.insert(std::string(text(i + 1)));
      }
    }
  }

  std::size_t skip_qualifiers(std::size_t i) const {
    while (is(i, "metal") || is(i, "::") || is(i, "const") || is(i, "typename")) ++i;
    return i;
  }

  // Position behind a vector type that starts at i, 0 where none does.
  std::size_t end_of_vector(std::size_t i) const {
    if (is(i, "vec") && is(i + 1, "<")) return skip_angles(i + 1);
    if (aliases_.count(std::string(text(i))) != 0) return i + 1;
    static const std::set<std::string_view> scalars = {"char", "uchar",  "short", "ushort",
                                                       "int",  "uint",   "long",  "ulong",
                                                       "half", "bfloat", "float"};
    std::string_view name = text(i);
    if (name.size() < 4 || name.back() < '2' || name.back() > '4') return 0;
    if (name.substr(0, 7) == "packed_") name.remove_prefix(7);
    return scalars.count(name.substr(0, name.size() - 1)) != 0 ? i + 1 : 0;
  }

  std::size_t skip_angles(std::size_t open) const {
    int depth = 0, brackets = 0;
    for (std::size_t i = open; i < tokens_.size() && !is(i, ";"); ++i) {
      if (is(i, "(")) ++brackets;
      if (is(i, ")")) --brackets;
      if (brackets != 0) continue;
      if (is(i, "<")) ++depth;
      if (is(i, ">") && --depth == 0) return i + 1;
    }
    return 0;
  }

  // First token of `a::b::name`, with `typename` in front of it.
  std::size_t begin_of_name(std::size_t i) const {
    while (i >= 2 && is(i - 1, "::") && tokens_[i - 2].kind == TokenKind::identifier) i -= 2;
    return i >= 1 && is(i - 1, "typename") ? i - 1 : i;
  }

  std::vector<Token> tokens_;
  std::set<std::string> aliases_;
  std::vector<std::pair<std::size_t, std::string>> insertions_;
};

}  // namespace

std::vector<std::pair<std::size_t, std::string>> find_vector_constructors(
    const std::string& source) {
  return Finder(source).find();
}

}  // namespace software_metal
