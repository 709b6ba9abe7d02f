// Chooses the way in, checks what every way in must, and keeps objects alive.
#include "array.h"

#include "hidden_state.h"

namespace metal_sdpa::python {
namespace {
ArrayNames g_names;
}  // namespace

void fail_dtype(Argument argument, std::string_view text, const char* dtypes) {
  fail(ErrorCode::unsupported_dtype, argument.call, ": ", argument.name, ": dtype ", text,
       ", takes ", dtypes);
}

std::shared_ptr<void> hold_object(PyObject* object) {
  Py_INCREF(object);
  return std::shared_ptr<void>(object, [](PyObject* held) {
    if (!Py_IsInitialized()) return;  // the interpreter is gone, and its memory with it
    const PyGILState_STATE state = PyGILState_Ensure();
    Py_DECREF(held);
    PyGILState_Release(state);
  });
}

void import_array(Argument argument, PyObject* object, Lifetime lifetime, const TakenDTypes& dtypes,
                  Array& array) {
  array.type = array_type_of(object);
  if (!array.type.is_plain()) refuse_hidden_state(argument, object, array.type);
  if (array.type.framework == Framework::numpy) {
    import_numpy(argument, object, lifetime, dtypes, array);
  } else {
    import_dlpack(argument, object, lifetime, dtypes, array);
  }
  array.elements = 1;
  for (int i = 0; i < array.ndim; ++i) array.elements *= array.shape[i];
}

void refuse_changed(Argument argument, PyObject* object, const Array& array) {
  if (array.type.framework == Framework::other) return;
  Array now;
  import_array(argument, object, Lifetime::borrowed, {"the dtype it had", true}, now);
  if (now.data == array.data && now.elements == array.elements) return;
  fail_argument(argument.call, ": ", argument.name,
                ": its memory changed while other arguments were read");
}

void init_arrays() {
  g_names.array_struct = PyUnicode_InternFromString("__array_struct__");
  g_names.dtype = PyUnicode_InternFromString("dtype");
  g_names.type = PyUnicode_InternFromString("type");
  g_names.name = PyUnicode_InternFromString("__name__");
  init_hidden_state();
  g_names.requires_grad = PyUnicode_InternFromString("requires_grad");
}

const ArrayNames& array_names() noexcept { return g_names; }

}  // namespace metal_sdpa::python
