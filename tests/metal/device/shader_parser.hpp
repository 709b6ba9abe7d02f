// Finds the kernels, function constants and threadgroup arrays of a shader.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "tokens.hpp"

namespace software_metal {

struct KernelParameter {
  std::string name;
  std::string attribute;  ///< "buffer", "threadgroup" or the name of a built-in value
  std::string index;      ///< expression, for buffer and threadgroup
  std::string enabled;    ///< function constant that decides whether it exists, or ""
  unsigned line = 0;
};

struct ParsedKernel {
  std::string name;             ///< with its namespaces
  std::string host_name;        ///< from host_name, else the name without namespaces
  std::string scope;            ///< "a::b::" or ""
  std::string template_header;  ///< "template <...>" or ""
  std::string max_threads;      ///< expression or ""
  std::vector<KernelParameter> parameters;
  std::size_t after = 0;        ///< offset behind its definition
  unsigned line = 0;
};

/// `template [[host_name("x")]] [[kernel]] ...`
struct ParsedInstantiation {
  std::string host_name;
  std::string function;     ///< template-id, with its namespaces
  std::string kernel_name;  ///< the same without template arguments
  unsigned line = 0;
};

struct ParsedConstant {
  std::string name;  ///< with its namespaces
  std::string index;
};

/// A program-scope constant whose value follows from function constants.
struct DerivedConstant {
  std::string name;   ///< without namespaces
  std::string scope;  ///< "a::b::" or ""
  std::string value;  ///< expression
  std::size_t begin = 0;  ///< offset of the word `constant`
  std::size_t after = 0;  ///< offset behind the declaration
};

/// `threadgroup T name[n];` inside a kernel.
struct ThreadgroupArray {
  std::size_t begin = 0, end = 0;  ///< offsets of the statement
  std::string type;
  struct Item {
    std::string name, dimensions;
  };
  std::vector<Item> items;
};

struct Span {
  std::size_t begin, end;
};

struct ParsedShader {
  std::vector<ParsedKernel> kernels;
  std::vector<ParsedInstantiation> instantiations;
  std::vector<ParsedConstant> constants;
  std::vector<DerivedConstant> derived;
  std::vector<ThreadgroupArray> threadgroup_arrays;
  std::vector<Span> blanks;         ///< text that the host compiler must not see
  std::vector<Span> variables;      ///< the words `constant` that become `static`
  std::vector<Span> function_constants;  ///< those of them that declare function constants
  std::vector<std::pair<Span, std::string>> replacements;
  /// Identifiers that the definition of a name mentions: a call graph by name.
  std::map<std::string, std::set<std::string>> mentions;
};

/// Throws TranslationError.
ParsedShader parse_shader(const std::string& source);

/// Constructor calls of vector types, `float2(a, b)`, `vec<T, 2>(a, b)`, or `Pair(a, b)` with
/// `typedef vec<T, 2> Pair`: what to insert, by offset.
std::vector<std::pair<std::size_t, std::string>> find_vector_constructors(
    const std::string& source);

/// Copies of a struct from `device`, `constant` and `threadgroup` memory, which MSL has by itself
/// and C++ with address spaces does not: what to insert, by offset.
std::vector<std::pair<std::size_t, std::string>> find_struct_copies(const std::string& source);

}  // namespace software_metal
