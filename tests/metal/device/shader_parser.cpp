// A parser for the declarations of a shader; it skips what it has no use for.
#include "shader_parser.hpp"

#include <algorithm>

#include "report.hpp"
#include "translator.hpp"

namespace software_metal {
namespace {

const std::set<std::string_view> kBuiltinValues = {"thread_position_in_grid",
                                                   "thread_position_in_threadgroup",
                                                   "thread_index_in_threadgroup",
                                                   "thread_index_in_simdgroup",
                                                   "threadgroup_position_in_grid",
                                                   "threads_per_threadgroup",
                                                   "dispatch_threads_per_threadgroup",
                                                   "threadgroups_per_grid",
                                                   "threads_per_grid",
                                                   "simdgroup_index_in_threadgroup",
                                                   "simdgroups_per_threadgroup",
                                                   "dispatch_simdgroups_per_threadgroup",
                                                   "threads_per_simdgroup",
                                                   "thread_execution_width",
                                                   "grid_size",
                                                   "grid_origin"};

class Parser {
 public:
  explicit Parser(const std::string& source) : source_(source), tokens_(tokenize(source)) {}

  ParsedShader parse() {
    declarations(0, tokens_.size(), "");
    find_defined_queries();
    return std::move(shader_);
  }

 private:
  // ----- Tokens

  std::string_view text(std::size_t i) const { return i < tokens_.size() ? tokens_[i].text : ""; }
  bool is(std::size_t i, std::string_view wanted) const { return text(i) == wanted; }
  bool is_identifier(std::size_t i) const {
    return i < tokens_.size() && tokens_[i].kind == TokenKind::identifier;
  }
  std::size_t offset_after(std::size_t i) const {
    return tokens_[i].offset + tokens_[i].text.size();
  }
  bool is_attribute(std::size_t i) const { return is(i, "[") && is(i + 1, "["); }

  std::string source_text(TokenRange range) const {
    if (range.empty()) return "";
    std::size_t begin = tokens_[range.begin].offset;
    std::string out = source_.substr(begin, offset_after(range.end - 1) - begin);
    std::replace(out.begin(), out.end(), '\n', ' ');
    return out;
  }

  [[noreturn]] void fail(std::size_t at, const std::string& message) const {
    unsigned line = tokens_[std::min(at, tokens_.size() - 1)].line;
    throw TranslationError(format("program_source:%u: error: %s", line, message.c_str()));
  }

  void blank(TokenRange range) {
    shader_.blanks.push_back({tokens_[range.begin].offset, offset_after(range.end - 1)});
  }

  // Position behind the bracket that closes the one at `open`.
  std::size_t skip_brackets(std::size_t open, std::size_t end) const {
    int depth = 0;
    for (std::size_t i = open; i < end; ++i) {
      std::string_view t = text(i);
      if (t == "(" || t == "[" || t == "{") ++depth;
      if (t == ")" || t == "]" || t == "}") --depth;
      if (depth == 0) return i + 1;
    }
    fail(open, format("no closing bracket for '%s'", std::string(text(open)).c_str()));
  }

  // The same for `<`; brackets inside hide what they hold.
  std::size_t skip_angles(std::size_t open, std::size_t end) const {
    int depth = 0;
    for (std::size_t i = open; i < end;) {
      std::string_view t = text(i);
      if (t == "(" || t == "[" || t == "{") {
        i = skip_brackets(i, end);
        continue;
      }
      if (t == "<") ++depth;
      if (t == ">") --depth;
      ++i;
      if (depth == 0) return i;
    }
    fail(open, "no closing '>'");
  }

  std::size_t skip_template_header(std::size_t i, std::size_t end) const {
    while (is(i, "template") && is(i + 1, "<")) i = skip_angles(i + 1, end);
    return i;
  }

  static std::string unquoted(std::string_view text) {
    return text.size() > 2 ? std::string(text.substr(1, text.size() - 2)) : "";
  }

  std::set<std::string> identifiers(TokenRange range) const {
    std::set<std::string> found;
    for (std::size_t i = range.begin; i < range.end; ++i) {
      if (is_identifier(i)) found.insert(std::string(text(i)));
    }
    return found;
  }

  void mention(std::string_view name, TokenRange range) {
    shader_.mentions[std::string(name)].merge(identifiers(range));
  }

  // ----- Declarations

  struct Declaration {
    TokenRange head;  ///< up to the body or the semicolon
    TokenRange body;  ///< with its braces; empty where there is none
    std::size_t end;
    bool is_function = false;
  };

  void declarations(std::size_t i, std::size_t end, const std::string& scope) {
    while (i < end) {
      if (is(i, ";") || is(i, "}")) {
        ++i;
      } else if (is(i, "namespace") || (is(i, "inline") && is(i + 1, "namespace"))) {
        i = enter_namespace(is(i, "inline") ? i + 1 : i, end, scope);
      } else {
        Declaration declaration = read_declaration(i, end);
        take(declaration, scope);
        i = declaration.end;
      }
    }
  }

  std::size_t enter_namespace(std::size_t i, std::size_t end, const std::string& scope) {
    std::string inner = scope;
    std::size_t open = i + 1;
    for (; open < end && !is(open, "{") && !is(open, ";"); ++open) {
      if (is_identifier(open)) inner += std::string(text(open)) + "::";
    }
    if (!is(open, "{")) return open + 1;
    std::size_t close = skip_brackets(open, end);
    declarations(open + 1, close - 1, inner);
    return close;
  }

  Declaration read_declaration(std::size_t begin, std::size_t end) const {
    Declaration out;
    out.head.begin = begin;
    bool has_parameters = false, has_value = false, is_aggregate = false;
    std::size_t i = skip_template_header(begin, end);
    while (i < end) {
      std::string_view t = text(i);
      if (t == ";") {
        if (out.body.empty()) out.head.end = i;
        out.end = i + 1;
        return out;
      }
      if (t == "{") {
        std::size_t close = skip_brackets(i, end);
        if (out.body.empty()) {
          out.head.end = i;
          out.body = {i, close};
        }
        i = close;
        if (has_parameters && !has_value && !is_aggregate) {
          out.is_function = true;
          out.end = i;
          return out;
        }
        continue;
      }
      if (t == "(" && !has_value) has_parameters = true;
      if (t == "=") has_value = true;
      bool aggregate = t == "struct" || t == "class" || t == "union" || t == "enum";
      if (aggregate && !has_parameters) is_aggregate = true;
      if (is_attribute(i) || t == "(") {
        i = skip_brackets(i, end);
      } else {
        ++i;
      }
    }
    fail(begin, "a declaration without an end");
  }

  void take(const Declaration& declaration, const std::string& scope) {
    std::size_t first = skip_template_header(declaration.head.begin, declaration.head.end);
    if (is_kernel(declaration.head)) {
      take_kernel(declaration, scope);
    } else if (is(first, "constant") || (is(first, "constexpr") && is(first + 1, "constant")) ||
               (is(first, "static") && is(first + 1, "constant"))) {
      take_constant(declaration, first, scope);
    } else {
      take_other(declaration, first);
    }
    if (declaration.is_function) take_threadgroup_arrays(declaration.body);
  }

  bool is_kernel(TokenRange head) const {
    for (std::size_t i = head.begin; i < head.end; ++i) {
      if (is(i, "kernel") || (is(i, "compute") && is_attribute(i - 2))) return true;
      if (is(i, "(") && !is_attribute(i - 1)) i = skip_brackets(i, head.end) - 1;
    }
    return false;
  }

  void take_other(const Declaration& declaration, std::size_t first) {
    TokenRange all{declaration.head.begin, declaration.end};
    if (declaration.is_function) {
      mention(text(name_before_parameters(declaration.head)), all);
      return;
    }
    if (is(first, "using") && is_identifier(first + 1)) return mention(text(first + 1), all);
    if (is(first, "typedef")) return mention(text(declaration.end - 2), all);
    for (std::size_t i = first; i < declaration.head.end; ++i) {
      bool aggregate = is(i, "struct") || is(i, "class") || is(i, "union") || is(i, "enum");
      if (aggregate && is_identifier(i + 1)) mention(text(i + 1), all);
    }
  }

  // Position of the identifier in front of the parameter list.
  std::size_t name_before_parameters(TokenRange head) const {
    std::size_t i = skip_template_header(head.begin, head.end);
    while (i < head.end) {
      if (is_attribute(i)) {
        i = skip_brackets(i, head.end);
      } else if (is(i, "(")) {
        bool is_name = i > head.begin && !is(i - 1, "decltype") && !is(i - 1, "__attribute__") &&
                       !is(i - 1, "alignas");
        if (is_name) return i - 1;
        i = skip_brackets(i, head.end);
      } else {
        ++i;
      }
    }
    fail(head.begin, "a kernel without parameters");
  }

  // ----- Kernels

  void take_kernel(const Declaration& declaration, const std::string& scope) {
    TokenRange head = declaration.head;
    if (is(head.begin, "template") && !is(head.begin + 1, "<")) {
      take_instantiation(declaration, scope);
      return;
    }
    if (!declaration.is_function) return;  // a forward declaration
    std::size_t name = name_before_parameters(head);
    ParsedKernel kernel;
    kernel.scope = scope;
    kernel.name = scope + std::string(text(name));
    kernel.host_name = text(name);
    kernel.line = tokens_[name].line;
    kernel.after = offset_after(declaration.end - 1);
    std::size_t after_header = skip_template_header(head.begin, head.end);
    kernel.template_header = source_text({head.begin, after_header});
    std::size_t close = skip_brackets(name + 1, head.end);
    take_head_attributes(kernel, {after_header, name});
    take_head_attributes(kernel, {close, head.end});
    for (TokenRange part : split({name + 2, close - 1})) {
      kernel.parameters.push_back(take_parameter(part));
    }
    mention(text(name), {head.begin, declaration.end});
    shader_.kernels.push_back(std::move(kernel));
  }

  void take_head_attributes(ParsedKernel& kernel, TokenRange range) {
    for (std::size_t i = range.begin; i < range.end;) {
      if (!is_attribute(i)) {
        ++i;
        continue;
      }
      std::size_t close = skip_brackets(i, range.end);
      for (TokenRange attribute : split({i + 2, close - 2})) {
        TokenRange argument{attribute.begin + 2, attribute.end - 1};
        if (is(attribute.begin, "host_name")) kernel.host_name = unquoted(text(argument.begin));
        if (is(attribute.begin, "max_total_threads_per_threadgroup")) {
          kernel.max_threads = source_text(argument);
        }
      }
      blank({i, close});
      i = close;
    }
  }

  std::vector<TokenRange> split(TokenRange range) const {
    std::vector<TokenRange> parts;
    TokenRange part{range.begin, range.begin};
    int angles = 0;
    for (std::size_t i = range.begin; i < range.end;) {
      if (is(i, ",") && angles == 0) {
        part.end = i;
        parts.push_back(part);
        part.begin = ++i;
        continue;
      }
      bool bracket = is(i, "(") || is(i, "[") || is(i, "{");
      if (is(i, "<")) ++angles;
      if (is(i, ">") && angles > 0) --angles;
      i = bracket ? skip_brackets(i, range.end) : i + 1;
    }
    part.end = range.end;
    if (!part.empty()) parts.push_back(part);
    return parts;
  }

  KernelParameter take_parameter(TokenRange range) {
    KernelParameter parameter;
    parameter.line = tokens_[range.begin].line;
    for (std::size_t i = range.begin; i < range.end;) {
      if (is_attribute(i)) {
        std::size_t close = skip_brackets(i, range.end);
        for (TokenRange attribute : split({i + 2, close - 2})) take_attribute(parameter, attribute);
        blank({i, close});
        i = close;
      } else {
        if (is_identifier(i)) parameter.name = text(i);
        ++i;
      }
    }
    if (parameter.attribute.empty()) {
      fail(range.begin, format("kernel parameter '%s' has no attribute such as [[buffer(0)]]",
                               parameter.name.c_str()));
    }
    return parameter;
  }

  void take_attribute(KernelParameter& parameter, TokenRange range) {
    std::string name(text(range.begin));
    std::string argument =
        range.end - range.begin > 2 ? source_text({range.begin + 2, range.end - 1}) : "";
    if (name == "function_constant") {
      parameter.enabled = argument;
    } else if (name == "buffer" || name == "threadgroup") {
      parameter.attribute = name;
      parameter.index = argument;
    } else if (kBuiltinValues.count(name) != 0) {
      parameter.attribute = name;
    } else {
      fail(range.begin, format("attribute '%s' of kernel parameter '%s' is not supported",
                               name.c_str(), parameter.name.c_str()));
    }
  }

  void take_instantiation(const Declaration& declaration, const std::string& scope) {
    ParsedInstantiation out;
    TokenRange head = declaration.head;
    out.line = tokens_[head.begin].line;
    std::size_t i = head.begin + 1;
    while (i < head.end) {
      if (is_attribute(i)) {
        std::size_t close = skip_brackets(i, head.end);
        if (is(i + 2, "host_name")) out.host_name = unquoted(text(i + 4));
        i = close;
      } else if (is(i, "decltype")) {
        i = skip_brackets(i + 1, head.end);
      } else if (is(i, "void") || is(i, "kernel")) {
        ++i;
      } else {
        break;
      }
    }
    std::size_t name_end = i;
    while (is_identifier(name_end) || is(name_end, "::")) ++name_end;
    std::size_t id_end = is(name_end, "<") ? skip_angles(name_end, head.end) : name_end;
    out.function = scope + source_text({i, id_end});
    out.kernel_name = scope + source_text({i, name_end});
    if (out.host_name.empty())
      fail(head.begin, "an explicit kernel instantiation without host_name");
    shader_.instantiations.push_back(std::move(out));
    blank({declaration.head.begin, declaration.end});
  }

  // ----- Constants

  void take_constant(const Declaration& declaration, std::size_t first, const std::string& scope) {
    std::size_t word = is(first, "constant") ? first : first + 1;
    TokenRange head{declaration.head.begin, declaration.end - 1};
    std::size_t name = 0, value = 0;
    std::string index;
    for (std::size_t i = word + 1; i < head.end; ++i) {
      if (is_attribute(i)) {
        std::size_t close = skip_brackets(i, head.end);
        if (is(i + 2, "function_constant")) {
          index = source_text({i + 4, close - 3});
          blank({i, close});
        }
        i = close - 1;
      } else if (is(i, "=") || is(i, "{")) {
        value = is(i, "=") ? i + 1 : i;
        break;
      } else if (is(i, "<")) {
        i = skip_angles(i, head.end) - 1;
      } else if (is(i, "[")) {
        i = skip_brackets(i, head.end) - 1;
      } else if (is_identifier(i)) {
        name = i;
      }
    }
    if (name == 0) return;
    mention(text(name), head);
    if (!index.empty()) {
      shader_.constants.push_back({scope + std::string(text(name)), index});
      constant_names_.insert(std::string(text(name)));
      shader_.variables.push_back({tokens_[word].offset, offset_after(word)});
      shader_.function_constants.push_back(shader_.variables.back());
    } else if (value != 0 && depends_on_constants({value, head.end})) {
      if (is(value, "{")) fail(value, "an array made from function constants is not supported");
      DerivedConstant derived{std::string(text(name)), scope, source_text({value, head.end}),
                              tokens_[word].offset, offset_after(declaration.end - 1)};
      shader_.derived.push_back(std::move(derived));
      constant_names_.insert(std::string(text(name)));
      shader_.variables.push_back({tokens_[word].offset, offset_after(word)});
    }
  }

  bool depends_on_constants(TokenRange range) const {
    for (std::size_t i = range.begin; i < range.end; ++i) {
      if (is_identifier(i) && constant_names_.count(std::string(text(i))) != 0) return true;
    }
    return false;
  }

  void find_defined_queries() {
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      if (!is(i, "is_function_constant_defined") || !is(i + 1, "(")) continue;
      std::size_t close = skip_brackets(i + 1, tokens_.size());
      std::string name = source_text({i + 2, close - 1});
      std::size_t scope_end = name.rfind("::");
      scope_end = scope_end == std::string::npos ? 0 : scope_end + 2;
      std::string query = name.substr(0, scope_end) + "msl_defined_" + name.substr(scope_end);
      shader_.replacements.push_back({{tokens_[i].offset, offset_after(close - 1)}, query});
    }
  }

  // ----- Threadgroup arrays

  void take_threadgroup_arrays(TokenRange body) {
    for (std::size_t i = body.begin + 1; i < body.end; ++i) {
      if (!is(i, "threadgroup")) continue;
      bool starts = is(i - 1, ";") || is(i - 1, "{") || is(i - 1, "}");
      if (starts) take_threadgroup_array(i, body.end);
    }
  }

  void take_threadgroup_array(std::size_t begin, std::size_t end) {
    std::size_t stop = begin;
    while (stop < end && !is(stop, ";")) {
      if (is(stop, "*") || is(stop, "&") || is(stop, "=") || is(stop, "(")) return;
      stop = is(stop, "[") ? skip_brackets(stop, end) : stop + 1;
    }
    ThreadgroupArray array{tokens_[begin].offset, offset_after(stop), "", {}};
    std::size_t type_end = 0;
    for (TokenRange part : split({begin + 1, stop})) {
      std::size_t name = part.end - 1;
      while (is(name, "]")) name = open_of(name) - 1;
      if (type_end == 0) type_end = name;
      array.items.push_back({std::string(text(name)), source_text({name + 1, part.end})});
    }
    array.type = source_text({begin + 1, type_end});
    shader_.threadgroup_arrays.push_back(std::move(array));
  }

  std::size_t open_of(std::size_t close) const {
    int depth = 0;
    for (std::size_t i = close;; --i) {
      if (is(i, "]")) ++depth;
      if (is(i, "[")) --depth;
      if (depth == 0 || i == 0) return i;
    }
  }

  const std::string& source_;
  std::vector<Token> tokens_;
  std::set<std::string> constant_names_;
  ParsedShader shader_;
};

}  // namespace

ParsedShader parse_shader(const std::string& source) { return Parser(source).parse(); }

}  // namespace software_metal
