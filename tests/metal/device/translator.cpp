// Writes the host form of a parsed shader.
#include "translator.hpp"

#include <algorithm>

#include "report.hpp"
#include "shader_parser.hpp"

namespace software_metal {
namespace {

std::string unscoped(const std::string& name) {
  std::size_t at = name.rfind("::");
  return at == std::string::npos ? name : name.substr(at + 2);
}

std::string scope_of(const std::string& name) {
  return name.substr(0, name.size() - unscoped(name).size());
}

// A function that the host can call, and the kernel it is made from.
struct Entry {
  std::string host_name;
  std::string function;
  std::string template_arguments;
  const ParsedKernel* kernel;
};

class Writer {
 public:
  Writer(const std::string& source, const ParsedShader& shader)
      : source_(source), shader_(shader) {}

  // Function constants are variables of another place, kernels functions, and that is all.
  std::string write_typecheck() {
    for (const Span& span : shader_.blanks) edits_.push_back({span, blanks(span)});
    for (const Span& span : shader_.function_constants) {
      edits_.push_back({span, "extern constant"});
    }
    for (auto& [at, text] : find_vector_constructors(source_)) insert(at, text);
    for (auto& [at, text] : find_struct_copies(source_)) insert(at, text);
    return "#include \"msl_typecheck.h\"\n" + spliced() + instantiations();
  }

  std::string write() {
    edit_source();
    return "#include \"msl_host.h\"\n" + apply_edits() + tables();
  }

 private:
  struct Edit {
    Span span;
    std::string text;
  };

  // What is a template is checked as the types that it is instantiated with.
  std::string instantiations() const {
    std::string out;
    for (const ParsedInstantiation& instantiation : shader_.instantiations) {
      out += format("#line %u\nstatic auto* const msl_instance_%u = &::%s;\n", instantiation.line,
                    instantiation.line, instantiation.function.c_str());
    }
    return out;
  }

  // ----- The source

  void edit_source() {
    for (const Span& span : shader_.blanks) edits_.push_back({span, blanks(span)});
    for (const Span& span : shader_.variables) edits_.push_back({span, "static"});
    for (const auto& [span, text] : shader_.replacements) edits_.push_back({span, text});
    for (auto& [at, text] : find_vector_constructors(source_)) insert(at, text);
    for (const DerivedConstant& derived : shader_.derived) insert_derivation(derived);
    unsigned id = 0;
    for (const ThreadgroupArray& array : shader_.threadgroup_arrays) replace_array(array, id);
    for (const ParsedKernel& kernel : shader_.kernels) insert_limit(kernel);
  }

  std::string blanks(const Span& span) const {
    std::string text = source_.substr(span.begin, span.end - span.begin);
    for (char& c : text) c = c == '\n' ? '\n' : ' ';
    return text;
  }

  void insert(std::size_t at, std::string text) { edits_.push_back({{at, at}, std::move(text)}); }

  void insert_derivation(const DerivedConstant& derived) {
    insert(derived.after, format(" static void msl_derive_%s() { %s = %s; }", derived.name.c_str(),
                                 derived.name.c_str(), derived.value.c_str()));
  }

  void replace_array(const ThreadgroupArray& array, unsigned& id) {
    std::string text;
    for (const auto& item : array.items) {
      std::string type = format("msl_array_%u", id);
      text += format("typedef %s %s%s; %s& %s = *static_cast<%s*>(msl_host::threadgroup_array(%u, "
                     "sizeof(%s)));",
                     array.type.c_str(), type.c_str(), item.dimensions.c_str(), type.c_str(),
                     item.name.c_str(), type.c_str(), id, type.c_str());
      ++id;
    }
    edits_.push_back({{array.begin, array.end}, text});
  }

  // The limit may name template parameters, so it becomes a template beside the kernel.
  void insert_limit(const ParsedKernel& kernel) {
    if (kernel.max_threads.empty()) return;
    insert(kernel.after, format(" %s struct msl_limit_%s { static constexpr unsigned value = (%s); };",
                                kernel.template_header.c_str(), unscoped(kernel.name).c_str(),
                                kernel.max_threads.c_str()));
  }

  // Function constants get a second variable that says whether they have a value. It stands in
  // front of everything that may ask.
  std::string apply_edits() {
    std::string out;
    for (const ParsedConstant& constant : shader_.constants) {
      out += in_scope(scope_of(constant.name),
                      "static bool msl_defined_" + unscoped(constant.name) + ";");
    }
    return out + "\n" + spliced();
  }

  // The source with the edits in it.
  std::string spliced() {
    std::sort(edits_.begin(), edits_.end(),
                     [](const Edit& a, const Edit& b) {
                return std::pair(a.span.begin, a.span.end) < std::pair(b.span.begin, b.span.end);
              });
    std::string out = "#line 1 \"program_source\"\n";
    std::size_t at = 0;
    for (const Edit& edit : edits_) {
      if (edit.span.begin < at) continue;  // inside text that is blanked already
      out += source_.substr(at, edit.span.begin - at) + edit.text;
      at = edit.span.end;
    }
    return out + source_.substr(at) + "\n";
  }

  static std::string in_scope(const std::string& scope, const std::string& text) {
    std::string open, close;
    for (std::size_t at = 0; at < scope.size();) {
      std::size_t end = scope.find("::", at);
      open += "namespace " + scope.substr(at, end - at) + " { ";
      close += " }";
      at = end + 2;
    }
    return open + text + close + " ";
  }

  // ----- The tables

  std::string tables() {
    std::vector<Entry> entries = list_entries();
    std::string out = "#line 1 \"generated\"\nnamespace {\n";
    for (std::size_t i = 0; i < entries.size(); ++i) out += entry_tables(entries[i], i);
    out += "const msl_host::Function msl_functions[] = {\n";
    for (std::size_t i = 0; i < entries.size(); ++i) out += entry_row(entries[i], i);
    out += "{}};\nconst msl_host::FunctionConstant msl_constants[] = {\n";
    for (const ParsedConstant& constant : shader_.constants) out += constant_row(constant);
    out += "{}};\nvoid msl_derive() {\n";
    for (const DerivedConstant& derived : shader_.derived) {
      out += format("%smsl_derive_%s();\n", derived.scope.c_str(), derived.name.c_str());
    }
    out += "}\n}\n";
    out += format("extern \"C\" __attribute__((visibility(\"default\"))) const msl_host::Module "
                  "msl_module = {msl_host::kAbiVersion, %zu, msl_functions, %zu, msl_constants, "
                  "&msl_derive, &msl_host::current, &msl_host::runtime};\n",
                  entries.size(), shader_.constants.size());
    return out;
  }

  std::vector<Entry> list_entries() const {
    std::vector<Entry> entries;
    for (const ParsedKernel& kernel : shader_.kernels) {
      if (kernel.template_header.empty()) {
        entries.push_back({kernel.host_name, kernel.name, "", &kernel});
      }
    }
    for (const ParsedInstantiation& made : shader_.instantiations) {
      const ParsedKernel* kernel = find_kernel(made.kernel_name);
      if (kernel == nullptr) {
        throw TranslationError(format("program_source:%u: error: no kernel named '%s'", made.line,
                                      made.kernel_name.c_str()));
      }
      entries.push_back({made.host_name, made.function,
                         made.function.substr(made.kernel_name.size()), kernel});
    }
    return entries;
  }

  const ParsedKernel* find_kernel(const std::string& name) const {
    for (const ParsedKernel& kernel : shader_.kernels) {
      if (kernel.name == name) return &kernel;
    }
    return nullptr;
  }

  static std::string parameter_type(const KernelParameter& parameter) {
    if (parameter.attribute == "buffer") {
      return "msl_host::BufferParameter<(" + parameter.index + ")>";
    }
    if (parameter.attribute == "threadgroup") {
      return "msl_host::ThreadgroupParameter<(" + parameter.index + ")>";
    }
    return "msl_host::ValueParameter<msl_host::" + parameter.attribute + ">";
  }

  std::string entry_tables(const Entry& entry, std::size_t i) const {
    std::string types, names, enabled;
    for (const KernelParameter& parameter : entry.kernel->parameters) {
      types += ", " + parameter_type(parameter);
      names += "\"" + parameter.name + "\", ";
      enabled += parameter.enabled.empty()
                     ? "nullptr, "
                     : "&::" + qualified_constant(parameter.enabled, parameter.line) + ", ";
    }
    // Qualified: a kernel may share its name with a function of the metal namespace.
    std::string qualified = "::" + entry.function;
    const char* function = qualified.c_str();
    std::string out =
        format("typedef msl_host::KernelEntry<decltype(&%s), &%s%s> msl_entry_%zu;\n", function,
               function, types.c_str(), i);
    out += format("const char* const msl_names_%zu[] = {%snullptr};\n", i, names.c_str());
    out += format("const bool* const msl_enabled_%zu[] = {%snullptr};\n", i, enabled.c_str());
    out += format("const msl_entry_%zu::Table msl_arguments_%zu(msl_names_%zu, msl_enabled_%zu);\n",
                  i, i, i, i);
    out += format("const unsigned msl_required_%zu[] = {", i);
    for (std::size_t constant : required_constants(*entry.kernel)) {
      out += format("%zu, ", constant);
    }
    return out + "0};\n";
  }

  std::string entry_row(const Entry& entry, std::size_t i) const {
    std::string limit = "0";
    if (!entry.kernel->max_threads.empty()) {
      limit = "::" + entry.kernel->scope + "msl_limit_" + unscoped(entry.kernel->name) +
              entry.template_arguments + "::value";
    }
    return format("{\"%s\", &msl_entry_%zu::run, msl_arguments_%zu.items, msl_arguments_%zu.count, "
                  "%s, msl_required_%zu, %zu},\n",
                  entry.host_name.c_str(), i, i, i, limit.c_str(), i,
                  required_constants(*entry.kernel).size());
  }

  static std::string constant_row(const ParsedConstant& constant) {
    std::string qualified = "::" + constant.name;
    const char* name = qualified.c_str();
    return format("{\"%s\", (%s), sizeof(%s), msl_host::ConstantTypeOf<decltype(%s)>::value, &%s, "
                  "&::%smsl_defined_%s},\n",
                  unscoped(constant.name).c_str(), constant.index.c_str(), name, name, name,
                  scope_of(constant.name).c_str(), unscoped(constant.name).c_str());
  }

  std::string qualified_constant(const std::string& name, unsigned line) const {
    for (const ParsedConstant& constant : shader_.constants) {
      if (constant.name == name || unscoped(constant.name) == name) return constant.name;
    }
    for (const DerivedConstant& derived : shader_.derived) {
      if (derived.name == name) return derived.scope + derived.name;
    }
    throw TranslationError(
        format("program_source:%u: error: '%s' is no function constant", line, name.c_str()));
  }

  // Positions of the constants that a kernel reaches through what it mentions. Those that the
  // source asks about with is_function_constant_defined may stay without a value.
  std::vector<std::size_t> required_constants(const ParsedKernel& kernel) const {
    std::set<std::string> reached, work = {unscoped(kernel.name)};
    while (!work.empty()) {
      std::string name = *work.begin();
      work.erase(work.begin());
      if (!reached.insert(name).second) continue;
      auto found = shader_.mentions.find(name);
      if (found != shader_.mentions.end()) work.insert(found->second.begin(), found->second.end());
    }
    std::vector<std::size_t> required;
    for (std::size_t i = 0; i < shader_.constants.size(); ++i) {
      std::string name = unscoped(shader_.constants[i].name);
      if (reached.count(name) != 0 && !is_queried(name)) required.push_back(i);
    }
    return required;
  }

  bool is_queried(const std::string& name) const {
    for (const auto& [span, text] : shader_.replacements) {
      if (unscoped(text) == "msl_defined_" + name) return true;
    }
    return false;
  }

  const std::string& source_;
  const ParsedShader& shader_;
  std::vector<Edit> edits_;
};

}  // namespace

std::string typecheck_form(const std::string& source) {
  ParsedShader shader = parse_shader(source);
  return Writer(source, shader).write_typecheck();
}

std::string translate_shader(const std::string& source) {
  ParsedShader shader = parse_shader(source);
  return Writer(source, shader).write();
}

}  // namespace software_metal
