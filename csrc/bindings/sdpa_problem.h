// From the arrays of a call to an SdpaProblem.
#pragma once

#include <optional>

#include "array.h"
#include "metal_sdpa/sdpa.h"
#include "score_arrays.h"
#include "sdpa_call.h"

namespace metal_sdpa::python {

/// The arrays of a call, described, and the problem that they pose; `problem.out` is packed.
struct SdpaInputs {
  Array q, k, v;
  std::optional<ScoreArrays> score_arrays;  ///< where the call gives any
  SdpaProblem problem;
};

/// Everything but memory: shapes, dtypes, options. Errors name the argument.
void read_sdpa_inputs(const SdpaCall& call, SdpaInputs& inputs);

/// Calls visit(argument, object, array, its Buffer in SdpaOperands, its layout in `problem`) for
/// each input array of the call.
template <typename Visit>
void for_each_input(const SdpaCall& call, const SdpaInputs& inputs, SdpaProblem& problem,
                    const Visit& visit) {
  const auto name = [&](const char* text) { return Argument{call.name, text}; };
  visit(name("q"), call.q, inputs.q, &SdpaOperands::q, problem.q);
  visit(name("k"), call.k, inputs.k, &SdpaOperands::k, problem.k);
  visit(name("v"), call.v, inputs.v, &SdpaOperands::v, problem.v);
  if (!inputs.score_arrays.has_value()) return;
  const ScoreArrays& arrays = *inputs.score_arrays;
  if (problem.mask) {
    visit(name("mask"), call.mask, arrays.mask, &SdpaOperands::mask, *problem.mask);
  }
  if (problem.sinks) {
    visit(name("sinks"), call.sinks, arrays.sinks, &SdpaOperands::sinks, *problem.sinks);
  }
  if (problem.alibi_slopes) {
    visit(name("alibi_slopes"), call.alibi_slopes, arrays.alibi_slopes, &SdpaOperands::alibi_slopes,
          *problem.alibi_slopes);
  }
}

/// One 4-dimensional array: the argument's name, its extents in words ("[B, Hq, L, D]").
void import_tensor(Argument argument, PyObject* object, const char* extents, Array& array);

/// Strides of a tensor whose last dimension is contiguous; InvalidArgument for another.
TensorLayout tensor_layout(Argument argument, const Array& array);

/// The bytes that an array touches, wrapped for the device. `offset` becomes the
/// distance in elements from their start to the array's first element. An empty Buffer where the
/// array has no element.
Buffer wrap_elements(const Device& device, Argument argument, const Array& array,
                     std::int64_t& offset);

}  // namespace metal_sdpa::python
