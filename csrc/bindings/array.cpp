// Chooses the way in and keeps objects alive.
#include "array.h"

namespace metal_sdpa::python {

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

Array import_array(Argument argument, PyObject* object, Lifetime lifetime, const char* dtypes) {
  Array array;
  array.type = array_type_of(object);
  if (array.type.framework == Framework::numpy) {
    import_numpy(argument, object, lifetime, dtypes, array);
  } else {
    import_dlpack(argument, object, lifetime, dtypes, array);
  }
  return array;
}

}  // namespace metal_sdpa::python
