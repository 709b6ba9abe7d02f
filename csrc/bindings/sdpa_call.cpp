// Argument parsing without a binding layer in between: it is a good part of a tiny call.
#include "sdpa_call.h"

#include <array>

#include "core/text.h"
#include "errors.h"

namespace metal_sdpa::python {
namespace {

namespace nb = nanobind;

struct Parameter {
  const char* text;
  PyObject* SdpaCall::* field;
};

constexpr std::size_t kPositional = 3;
constexpr std::array<Parameter, 14> kParameters{{
    {"q", &SdpaCall::q},
    {"k", &SdpaCall::k},
    {"v", &SdpaCall::v},
    {"causal", &SdpaCall::causal},
    {"q_start", &SdpaCall::q_start},
    {"scale", &SdpaCall::scale},
    {"mask", &SdpaCall::mask},
    {"window", &SdpaCall::window},
    {"softcap", &SdpaCall::softcap},
    {"sinks", &SdpaCall::sinks},
    {"kv_lengths", &SdpaCall::kv_lengths},
    {"out", &SdpaCall::out},
    {"return_lse", &SdpaCall::return_lse},
    {"device", &SdpaCall::device},
}};

std::array<PyObject*, kParameters.size()> g_names{};

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
  const Parameter& parameter = kParameters[find_parameter(call.name, keyword)];
  PyObject*& field = call.*parameter.field;
  if (field != nullptr) fail_call(text_of(call.name, ": ", parameter.text, ": is given twice"));
  field = value;
}

void require_inputs(const SdpaCall& call) {
  for (std::size_t i = 0; i < kPositional; ++i) {
    if (call.*kParameters[i].field != nullptr) continue;
    fail_call(text_of(call.name, ": ", kParameters[i].text, ": is missing"));
  }
}

void drop_nones(SdpaCall& call) {
  for (std::size_t i = kPositional; i < kParameters.size(); ++i) {
    PyObject*& field = call.*kParameters[i].field;
    if (field == Py_None) field = nullptr;
  }
}

}  // namespace

SdpaCall parse_sdpa_call(const char* name, PyObject* const* arguments, Py_ssize_t n_positional,
                         PyObject* keywords) {
  SdpaCall call;
  call.name = name;
  if (n_positional > static_cast<Py_ssize_t>(kPositional)) {
    fail_call(text_of(name, ": got ", n_positional, " positional arguments, takes q, k and v"));
  }
  for (Py_ssize_t i = 0; i < n_positional; ++i) {
    call.*kParameters[static_cast<std::size_t>(i)].field = arguments[i];
  }
  const Py_ssize_t n_keywords = keywords == nullptr ? 0 : PyTuple_Size(keywords);
  for (Py_ssize_t i = 0; i < n_keywords; ++i) {
    set_keyword(call, PyTuple_GetItem(keywords, i), arguments[n_positional + i]);
  }
  require_inputs(call);
  drop_nones(call);
  return call;
}

void init_sdpa_call() {
  for (std::size_t i = 0; i < kParameters.size(); ++i) {
    g_names[i] = PyUnicode_InternFromString(kParameters[i].text);
    if (g_names[i] == nullptr) nb::raise_python_error();
  }
}

}  // namespace metal_sdpa::python
