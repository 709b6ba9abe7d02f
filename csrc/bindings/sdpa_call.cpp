// Argument parsing without a binding layer in between: it is a good part of a tiny call.
#include "sdpa_call.h"

#include <array>
#include <vector>

#include "core/text.h"
#include "errors.h"
#include "parameters.h"

namespace metal_sdpa::python {
namespace {

namespace nb = nanobind;

// Never freed: Python may be gone before it.
using Names = std::array<std::vector<PyObject*>, kKeyRows>;
Names& all_names() {
  static auto* const names = new Names;
  return *names;
}

const std::vector<PyObject*>& names_of(KeyRows keys) {
  return all_names()[static_cast<std::size_t>(keys)];
}

[[noreturn]] void fail_call(const std::string& text) {
  PyErr_SetString(PyExc_TypeError, text.c_str());
  nb::raise_python_error();
}

std::size_t find_parameter(const SdpaCall& call, PyObject* keyword) {
  const std::vector<PyObject*>& names = names_of(call.keys);
  // Keywords of a call are interned, so that identity nearly always decides.
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (names[i] == keyword) return i;
  }
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (PyUnicode_Compare(names[i], keyword) == 0) return i;
  }
  fail_call(text_of(call.name, ": got an unexpected argument ",
                    text_or_empty(nb::repr(nb::handle(keyword)))));
}

void set_keyword(SdpaCall& call, const Signature& signature, PyObject* keyword, PyObject* value) {
  const std::size_t index = find_parameter(call, keyword);
  if (value == Py_None && index >= signature.n_positional) return;
  const Parameter& parameter = signature.parameters[index];
  PyObject*& field = call.*parameter.field;
  if (field != nullptr) fail_call(text_of(call.name, ": ", parameter.name, ": is given twice"));
  field = value;
}

/// "q, k and v".
std::string positional_text(const Signature& signature) {
  std::string text;
  for (std::size_t i = 0; i < signature.n_positional; ++i) {
    const bool is_last = i + 1 == signature.n_positional;
    text += text_of(i == 0 ? "" : is_last ? " and " : ", ", signature.parameters[i].name);
  }
  return text;
}

void require_positional(const SdpaCall& call, const Signature& signature) {
  for (std::size_t i = 0; i < signature.n_positional; ++i) {
    const Parameter& parameter = signature.parameters[i];
    if (call.*parameter.field != nullptr) continue;
    fail_call(text_of(call.name, ": ", parameter.name, ": is missing"));
  }
}

}  // namespace

SdpaCall parse_sdpa_call(const char* name, KeyRows keys, PyObject* const* arguments,
                         Py_ssize_t n_positional, PyObject* keywords) {
  SdpaCall call;
  call.name = name;
  call.keys = keys;
  const Signature& signature = signature_of(keys);
  if (n_positional > static_cast<Py_ssize_t>(signature.n_positional)) {
    fail_call(text_of(name, ": got ", n_positional, " positional arguments, takes ",
                      positional_text(signature)));
  }
  for (Py_ssize_t i = 0; i < n_positional; ++i) {
    call.*signature.parameters[static_cast<std::size_t>(i)].field = arguments[i];
  }
  const Py_ssize_t n_keywords = keywords == nullptr ? 0 : PyTuple_Size(keywords);
  for (Py_ssize_t i = 0; i < n_keywords; ++i) {
    set_keyword(call, signature, PyTuple_GetItem(keywords, i), arguments[n_positional + i]);
  }
  require_positional(call, signature);
  return call;
}

void init_sdpa_call() {
  for (const KeyRows keys : {KeyRows::dense, KeyRows::packed, KeyRows::paged}) {
    std::vector<PyObject*>& names = all_names()[static_cast<std::size_t>(keys)];
    for (const Parameter& parameter : signature_of(keys).parameters) {
      names.push_back(PyUnicode_InternFromString(parameter.name));
      if (names.back() == nullptr) nb::raise_python_error();
    }
  }
}

}  // namespace metal_sdpa::python
