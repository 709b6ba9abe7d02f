// What torch keeps beside a tensor's memory.
#pragma once

#include "convert.h"

namespace metal_sdpa::python {

/// Unsupported for a tensor whose elements are not those in its memory (a lazy minus), or that
/// requires gradients while grad mode is on.
void refuse_torch_state(Argument argument, PyObject* tensor);

/// Whether forward-mode differentiation is going on: only then can a tensor have a tangent.
bool in_dual_level();

/// Unsupported for a tensor with a tangent of forward-mode differentiation.
void refuse_tangent(Argument argument, PyObject* tensor);

/// Unsupported while torch.jit.trace or make_fx records what this thread calls: the result would
/// stand in the recording as a constant.
void refuse_torch_recording(Argument argument);

bool requires_gradients(PyObject* tensor);

/// Makes the names of attributes; once, when the module is made.
void init_hidden_torch();

}  // namespace metal_sdpa::python
