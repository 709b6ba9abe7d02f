// A tiny call spends its time here too: each check is one look at a cached place or one C function.
#include "hidden_torch.h"

#include <atomic>

namespace metal_sdpa::python {
namespace {

/// Places of torch that say what is going on, found when the first tensor comes. Each is null
/// where this torch has no such thing. They live as long as the process.
struct TorchPlaces {
  PyObject* requires_grad = nullptr;  ///< Tensor.requires_grad, a descriptor
  descrgetfunc get_requires_grad = nullptr;
  PyObject* is_neg = nullptr;      ///< Tensor.is_neg
  PyObject* is_tracing = nullptr;  ///< torch._C._is_tracing
  PyObject* forward_ad = nullptr;  ///< dict of torch.autograd.forward_ad
  PyObject* dispatch = nullptr;    ///< dict of torch.utils._python_dispatch
};

PyObject* g_current_level = nullptr;  // names in those dicts
PyObject* g_in_dispatch_mode = nullptr;
PyObject* g_no_level = nullptr;  // the int -1
std::atomic<const TorchPlaces*> g_places{nullptr};

/// The attribute, with a reference that is never given back; null where there is none.
PyObject* find_place(const char* module, const char* attribute) {
  try {
    return nb::object(nb::module_::import_(module).attr(attribute)).release().ptr();
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_ImportError) && !error.matches(PyExc_AttributeError)) throw;
    return nullptr;
  }
}

TorchPlaces find_places() {
  TorchPlaces places;
  const nb::object tensor = nb::module_::import_("torch").attr("Tensor");
  places.requires_grad = nb::object(tensor.attr("requires_grad")).release().ptr();
  places.get_requires_grad = reinterpret_cast<descrgetfunc>(
      PyType_GetSlot(Py_TYPE(places.requires_grad), Py_tp_descr_get));
  places.is_neg = nb::object(tensor.attr("is_neg")).release().ptr();
  places.is_tracing = find_place("torch._C", "_is_tracing");
  places.forward_ad = find_place("torch.autograd.forward_ad", "__dict__");
  places.dispatch = find_place("torch.utils._python_dispatch", "__dict__");
  return places;
}

/// Two threads may both look: a lock would be held while Python imports.
const TorchPlaces& torch_places() {
  const TorchPlaces* places = g_places.load(std::memory_order_acquire);
  if (places != nullptr) return *places;
  const auto* found = new TorchPlaces(find_places());
  g_places.store(found, std::memory_order_release);
  return *found;
}

/// A bool of Python's.
bool take_flag(PyObject* flag) {
  if (flag == nullptr) nb::raise_python_error();
  const bool is_true = flag == Py_True;
  Py_DECREF(flag);
  return is_true;
}

/// Grad mode is asked for only where a tensor requires gradients.
bool grad_mode_is_on() {
  return nb::cast<bool>(nb::module_::import_("torch").attr("is_grad_enabled")());
}

bool has_tangent(PyObject* tensor) {
  const nb::object unpacked =
      nb::module_::import_("torch.autograd.forward_ad").attr("unpack_dual")(nb::handle(tensor));
  return !unpacked.attr("tangent").is_none();
}

/// make_fx records through a dispatch mode.
bool is_recording(const TorchPlaces& places) {
  if (places.dispatch == nullptr) return false;
  if (PyDict_GetItemWithError(places.dispatch, g_in_dispatch_mode) != Py_True) return false;
  const nb::object get_mode =
      nb::steal(find_place("torch.fx.experimental.proxy_tensor", "get_proxy_mode"));
  return get_mode.is_valid() && !get_mode().is_none();
}

}  // namespace

bool requires_gradients(PyObject* tensor) {
  const TorchPlaces& places = torch_places();
  return take_flag(places.get_requires_grad(places.requires_grad, tensor, nullptr));
}

void refuse_torch_state(Argument argument, PyObject* tensor) {
  if (requires_gradients(tensor) && grad_mode_is_on()) {
    fail(ErrorCode::unsupported, argument.call, ": ", argument.name,
         ": requires gradients, but this is forward only; takes it under torch.no_grad() or after "
         "detach()");
  }
  if (take_flag(PyObject_Vectorcall(torch_places().is_neg, &tensor, 1, nullptr))) {
    fail(ErrorCode::unsupported, argument.call, ": ", argument.name,
         ": a lazily negated view, whose memory lacks the minus; takes it after resolve_neg()");
  }
}

bool in_dual_level() {
  const TorchPlaces& places = torch_places();
  if (places.forward_ad == nullptr) return false;
  PyObject* level = PyDict_GetItemWithError(places.forward_ad, g_current_level);
  return level != nullptr && level != g_no_level && PyLong_AsLong(level) >= 0;
}

void refuse_tangent(Argument argument, PyObject* tensor) {
  if (!has_tangent(tensor)) return;
  fail(ErrorCode::unsupported, argument.call, ": ", argument.name,
       ": has a tangent of forward-mode differentiation, but this gives none; takes its primal");
}

void refuse_torch_recording(Argument argument) {
  const TorchPlaces& places = torch_places();
  const bool tracing = places.is_tracing != nullptr &&
                       take_flag(PyObject_Vectorcall(places.is_tracing, nullptr, 0, nullptr));
  if (!tracing && !is_recording(places)) return;
  fail(ErrorCode::unsupported, argument.call, ": ", argument.name,
       ": torch is recording a trace, in which the result would be a constant; takes tensors "
       "outside of torch.jit.trace and make_fx");
}

void init_hidden_torch() {
  g_current_level = PyUnicode_InternFromString("_current_level");
  g_in_dispatch_mode = PyUnicode_InternFromString("_is_in_torch_dispatch_mode");
  g_no_level = PyLong_FromLong(-1);
}

}  // namespace metal_sdpa::python
