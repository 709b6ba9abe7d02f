// Shapes, memory and copies of what a call writes.
#include "outputs.h"

#include "staging.h"

namespace metal_sdpa::python {
namespace {

/// No Shape: a tiny call has no time for an allocation.
struct Extents {
  int ndim;
  std::int64_t extents[4];
};

Extents out_shape(const SdpaInputs& inputs) {
  const SdpaProblem& problem = inputs.problem;
  const std::int64_t rows = inputs.query_rows();
  if (inputs.tokens.packed) return {3, {rows, problem.n_heads, problem.value_dim}};
  return {4, {problem.batch, problem.n_heads, rows, problem.value_dim}};
}

Extents lse_shape(const SdpaInputs& inputs) {
  const SdpaProblem& problem = inputs.problem;
  if (inputs.tokens.packed) return {2, {problem.n_heads, inputs.query_rows()}};
  return {3, {problem.batch, problem.n_heads, problem.seq_len}};
}

Buffer output_buffer(const Device& device, Argument argument, const Result& result,
                     bool keeps_elements, TensorLayout& layout) {
  if (needs_staging(device, result.array)) {
    Placement placement;
    Buffer memory = keeps_elements ? stage_in(device, result.array, placement)
                                   : stage_empty(device, result.array, placement);
    place(placement, layout);
    return memory;
  }
  if (result.buffer.valid()) return result.buffer;
  return wrap_elements(device, argument, result.array, layout.offset);
}

void make_out(const SdpaCall& call, const Device& device, SdpaInputs& inputs, Result& out) {
  SdpaProblem& problem = inputs.problem;
  const Argument argument{call.name, "q"};
  const Extents shape = out_shape(inputs);
  if (!inputs.tokens.packed) {
    make_result(argument, device, inputs.q, call.q, problem.dtype, shape.extents, out);
  } else {
    const Array like = tokens_first(inputs.q);
    make_result(argument, device, like, call.q, problem.dtype, shape.extents, out);
    show_heads_first(out.array);
  }
  problem.out = tensor_layout({call.name, "out"}, out.array);
}

}  // namespace

void import_out(const SdpaCall& call, SdpaInputs& inputs, Array& out) {
  const Argument argument{call.name, "out"};
  SdpaProblem& problem = inputs.problem;
  const bool packed = inputs.tokens.packed;
  import_tensor(argument, call.out, packed ? "[Tq, Hq, Dv]" : "[B, Hq, L, Dv]", packed ? 3 : 4,
                out);
  if (out.read_only) fail_argument(call.name, ": out: is read-only");
  if (out.copied) fail_argument(call.name, ": out: gives a copy of its memory, takes one to share");
  problem.out_f32 = out.dtype == DType::f32 && problem.dtype != DType::f32;
  if (out.dtype != problem.dtype && !problem.out_f32) {
    fail(ErrorCode::unsupported_dtype, call.name, ": out: dtype ", dtype_name(out.dtype),
         ", but q has ", dtype_name(problem.dtype), ", takes that or f32");
  }
  const Extents shape = out_shape(inputs);
  const Shape wanted(shape.extents, shape.extents + shape.ndim);
  if (out.shape_list() != wanted) {
    fail_argument(call.name, ": out: shape ", out.shape_list(), ", takes ", wanted);
  }
  if (packed) show_heads_first(out);
  problem.out = tensor_layout(argument, out);
}

void make_outputs(const SdpaCall& call, const Device& device, SdpaInputs& inputs,
                  Outputs& outputs) {
  if (call.out != nullptr) {
    outputs.out.object = nb::borrow(nb::handle(call.out));
  } else {
    make_out(call, device, inputs, outputs.out);
  }
  if (!inputs.problem.return_lse) return;
  const Extents shape = lse_shape(inputs);
  make_packed_result({call.name, "q"}, device, inputs.q, call.q, DType::f32, shape.extents,
                     shape.ndim, outputs.lse);
}

void bind_outputs(const SdpaCall& call, const Device& device, SdpaInputs& inputs,
                  const Outputs& outputs, SdpaOperands& operands) {
  SdpaProblem& problem = inputs.problem;
  // The copy back writes every row, those too that the caller's out keeps.
  const bool keeps_elements = call.out != nullptr && inputs.tokens.packed;
  operands.out =
      output_buffer(device, {call.name, "out"}, outputs.out, keeps_elements, problem.out);
  if (!problem.return_lse) return;
  TensorLayout packed = tensor_layout({call.name, "lse"}, outputs.lse.array);
  operands.lse = output_buffer(device, {call.name, "lse"}, outputs.lse, false, packed);
}

void finish_outputs(const SdpaCall& call, const Device& device, const SdpaInputs& inputs,
                    const Outputs& outputs, const SdpaOperands& operands) {
  if (inputs.tokens.packed) {
    fill_idle_rows(call.name, inputs.problem, inputs.query_rows(), inputs.tokens,
                   call.out == nullptr, operands);
  }
  if (needs_staging(device, outputs.out.array)) stage_out(operands.out, outputs.out.array);
  if (!inputs.problem.return_lse) return;
  if (needs_staging(device, outputs.lse.array)) stage_out(operands.lse, outputs.lse.array);
}

}  // namespace metal_sdpa::python
