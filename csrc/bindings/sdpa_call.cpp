// Argument parsing without a binding layer in between: it is a good part of a tiny call.
#include "sdpa_call.h"

#include <array>

#include "core/text.h"
#include "errors.h"
#include "parameters.h"

namespace metal_sdpa::python {
namespace {

namespace nb = nanobind;

std::array<PyObject*, kParameters> g_names{};

[[noreturn]] void fail_call(const std::string& text) {
  PyErr_SetString(PyExc_TypeError, text.c_str());
  nb::raise_python_error();
}

std::size_t find_parameter(const char* name, PyObject* keyword) {
  // Keywords of a call are interned, so that identity nearly always decides.
  for (std::size_t i = 0; i < g_names.size(); ++i) {
    if (g_names[i] == keyword) return i;
  }
  for (std::size_t i = 0; i < g_names.size(); ++i) {
    if (PyUnicode_Compare(g_names[i], keyword) == 0) return i;
  }
  fail_call(
      text_of(name, ": got an unexpected argument ", text_or_empty(nb::repr(nb::handle(keyword)))));
}

void set_keyword(SdpaCall& call, PyObject* keyword, PyObject* value) {
  const std::size_t index = find_parameter(call.name, keyword);
  if (value == Py_None && index >= kPositional) return;
  const Parameter& parameter = parameters()[index];
  PyObject*& field = call.*parameter.field;
  if (field != nullptr) fail_call(text_of(call.name, ": ", parameter.name, ": is given twice"));
  field = value;
}

void require_inputs(const SdpaCall& call) {
  if (call.q != nullptr && call.k != nullptr && call.v != nullptr) return;
  const char* missing = call.q == nullptr ? "q" : call.k == nullptr ? "k" : "v";
  fail_call(text_of(call.name, ": ", missing, ": is missing"));
}

}  // namespace

SdpaCall parse_sdpa_call(const char* name, PyObject* const* arguments, Py_ssize_t n_positional,
                         PyObject* keywords) {
  SdpaCall call;
  call.name = name;
  if (n_positional > static_cast<Py_ssize_t>(kPositional)) {
    fail_call(text_of(name, ": got ", n_positional, " positional arguments, takes q, k and v"));
  }
  PyObject** const positional[kPositional] = {&call.q, &call.k, &call.v};
  for (Py_ssize_t i = 0; i < n_positional; ++i) *positional[i] = arguments[i];
  const Py_ssize_t n_keywords = keywords == nullptr ? 0 : PyTuple_Size(keywords);
  for (Py_ssize_t i = 0; i < n_keywords; ++i) {
    set_keyword(call, PyTuple_GetItem(keywords, i), arguments[n_positional + i]);
  }
  require_inputs(call);
  return call;
}

void init_sdpa_call() {
  for (std::size_t i = 0; i < kParameters; ++i) {
    g_names[i] = PyUnicode_InternFromString(parameters()[i].name);
    if (g_names[i] == nullptr) nb::raise_python_error();
  }
}

}  // namespace metal_sdpa::python
