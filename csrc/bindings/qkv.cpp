// Three forms of q, k and v, shown with heads before rows.
#include "qkv.h"

#include <utility>

namespace metal_sdpa::python {
namespace {

void import_dense(const SdpaCall& call, SdpaInputs& inputs) {
  import_tensor({call.name, "q"}, call.q, "[B, Hq, L, D]", 4, inputs.q);
  import_tensor({call.name, "k"}, call.k, "[B, Hkv, S, D]", 4, inputs.k);
  import_tensor({call.name, "v"}, call.v, "[B, Hkv, S, Dv]", 4, inputs.v);
}

/// One packed tensor.
void import_rows(Argument argument, PyObject* object, const char* extents, const char* width,
                 Array& array) {
  import_tensor(argument, object, extents, 3, array);
  require_heads(argument, array, 1, width);
  show_heads_first(array);
}

void import_packed(const SdpaCall& call, SdpaInputs& inputs) {
  import_rows({call.name, "q"}, call.q, "[Tq, Hq, D]", "head_dim", inputs.q);
  import_rows({call.name, "k"}, call.k, "[Tk, Hkv, D]", "head_dim", inputs.k);
  import_rows({call.name, "v"}, call.v, "[Tk, Hkv, Dv]", "value_dim", inputs.v);
}

void import_queries(const SdpaCall& call, bool packed, Array& q) {
  const Argument argument{call.name, "q"};
  import_tensor(argument, call.q, packed ? "[Tq, Hq, D]" : "[B, Hq, L, D]", packed ? 3 : 4, q);
  require_heads(argument, q, 1, "head_dim");
  if (packed) show_heads_first(q);
}

/// K or V in pages.
void import_pages(Argument argument, PyObject* object, bool heads_first, const char* width,
                  Array& array) {
  const char* extents = heads_first ? "[n_pages, Hkv, page, D]" : "[n_pages, page, Hkv, D]";
  import_tensor(argument, object, extents, 4, array);
  require_heads(argument, array, heads_first ? 1 : 2, width);
  if (array.shape[heads_first ? 2 : 1] == 0) {
    fail_argument(argument.call, ": ", argument.name, ": shape ", array.shape_list(),
                  " has pages of 0 slots");
  }
  if (heads_first) return;
  std::swap(array.shape[1], array.shape[2]);
  std::swap(array.strides[1], array.strides[2]);
}

}  // namespace

void import_qkv(const SdpaCall& call, SdpaInputs& inputs) {
  const QkvForm& form = inputs.form;
  if (call.keys == KeyRows::dense) return import_dense(call, inputs);
  if (call.keys == KeyRows::packed) return import_packed(call, inputs);
  import_queries(call, form.packed_queries, inputs.q);
  import_pages({call.name, call.k_name()}, call.k, form.heads_first, "head_dim", inputs.k);
  import_pages({call.name, call.v_name()}, call.v, form.heads_first, "value_dim", inputs.v);
}

}  // namespace metal_sdpa::python
