// The arguments of sdpa(), plan(), sdpa_varlen() and sdpa_paged(), as Python hands them over.
#pragma once

#include <nanobind/nanobind.h>

namespace metal_sdpa::python {

/// How rows of K and V lie, which is what the calls differ by: sdpa(), sdpa_varlen(), sdpa_paged().
enum class KeyRows { dense, packed, paged };
inline constexpr std::size_t kKeyRows = 3;

/// Borrowed references; null where an argument is absent or None (those that stand without a
/// keyword never are).
struct SdpaCall {
  const char* name = "sdpa";
  KeyRows keys = KeyRows::dense;
  PyObject* q = nullptr;
  PyObject* k = nullptr;
  PyObject* v = nullptr;
  PyObject* cu_seqlens_q = nullptr;
  PyObject* cu_seqlens_k = nullptr;
  PyObject* block_table = nullptr;
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
  PyObject* layout = nullptr;
  PyObject* check_indices = nullptr;
  PyObject* out = nullptr;
  PyObject* return_lse = nullptr;
  PyObject* device = nullptr;

  const char* k_name() const { return keys == KeyRows::paged ? "k_pages" : "k"; }
  const char* v_name() const { return keys == KeyRows::paged ? "v_pages" : "v"; }
};

/// Reads a vectorcall (METH_FASTCALL | METH_KEYWORDS). Python's TypeError for a missing, unknown or
/// repeated argument.
SdpaCall parse_sdpa_call(const char* name, KeyRows keys, PyObject* const* arguments,
                         Py_ssize_t n_positional, PyObject* keywords);

/// Makes the names that keywords are compared with; once, when the module is made.
void init_sdpa_call();

}  // namespace metal_sdpa::python
