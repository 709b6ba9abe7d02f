// The arguments of sdpa() and plan(), as Python hands them over.
#pragma once

#include <nanobind/nanobind.h>

namespace metal_sdpa::python {

/// Borrowed references; null where an argument is absent or None (q, k and v never are).
struct SdpaCall {
  const char* name = "sdpa";
  PyObject* q = nullptr;
  PyObject* k = nullptr;
  PyObject* v = nullptr;
  PyObject* causal = nullptr;
  PyObject* q_start = nullptr;
  PyObject* scale = nullptr;
  PyObject* mask = nullptr;
  PyObject* window = nullptr;
  PyObject* softcap = nullptr;
  PyObject* sinks = nullptr;
  PyObject* alibi_slopes = nullptr;
  PyObject* kv_lengths = nullptr;
  PyObject* kv_starts = nullptr;
  PyObject* query_lengths = nullptr;
  PyObject* key_offset = nullptr;
  PyObject* key_stride = nullptr;
  PyObject* out = nullptr;
  PyObject* return_lse = nullptr;
  PyObject* device = nullptr;
};

/// Reads a vectorcall (METH_FASTCALL | METH_KEYWORDS). Python's TypeError for a missing, unknown or
/// repeated argument.
SdpaCall parse_sdpa_call(const char* name, PyObject* const* arguments, Py_ssize_t n_positional,
                         PyObject* keywords);

/// Makes the names that keywords are compared with; once, when the module is made.
void init_sdpa_call();

}  // namespace metal_sdpa::python
