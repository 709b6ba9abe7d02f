// What an array can carry that its memory does not show: a sign, a tangent, a recording.
#pragma once

#include <initializer_list>

#include "array_type.h"
#include "convert.h"

namespace metal_sdpa::python {

/// Why arrays of this type are refused whatever they hold; null where they are not. A string
/// literal.
const char* refusal_of_type(PyTypeObject* type, Framework framework);

/// Unsupported where the array's elements are not those in its memory, or more than these count:
/// negated views, gradients while grad mode is on, tangents, masks, types with operations of their
/// own.
void refuse_hidden_state(Argument argument, PyObject* object, const ArrayType& type);

/// An array argument of a call; `object` is null where it is absent.
struct NamedObject {
  const char* name;
  PyObject* object;
  Framework framework;

  bool is_of(Framework wanted) const { return object != nullptr && framework == wanted; }
};

/// Unsupported where a result would wrongly count as a constant: one of at most 8 arrays has a
/// forward-mode tangent, or a transformation records what is done to it (torch.jit.trace and
/// make_fx, MLX's grad, vmap and compile). Once a call.
void refuse_traced(const char* call, std::initializer_list<NamedObject> arguments);

/// The same two for a number that may be an array of one element.
void refuse_hidden_number(Argument argument, PyObject* object);

/// Makes the names of attributes; once, when the module is made.
void init_hidden_state();

}  // namespace metal_sdpa::python
