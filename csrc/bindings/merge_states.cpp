// merge_states(): states as arrays of any framework, stacked along their first axis.
#include "metal_sdpa/merge_states.h"

#include "array.h"
#include "bindings.h"
#include "device.h"
#include "gil.h"
#include "hidden_state.h"
#include "interrupts.h"
#include "result.h"
#include "sdpa_problem.h"

namespace metal_sdpa::python {
namespace {

constexpr const char* kCall = "merge_states";
constexpr const char* kDTypes = "f32, f16 or bf16";
constexpr int kLeadingAxes = 3;  // between the states and D, at most

void import_floats(Argument argument, PyObject* object, Array& array) {
  import_array(argument, object, Lifetime::borrowed, kDTypes, array);
  // NumPy has no bfloat16 of its own: its uint16 arrays hold bfloat16 bits.
  const bool holds_bits = array.dtype == DType::u16 && array.type.framework == Framework::numpy;
  if (holds_bits) array.dtype = DType::bf16;
  if (array.dtype != DType::f32 && array.dtype != DType::f16 && array.dtype != DType::bf16) {
    fail_dtype(argument, dtype_name(array.dtype), kDTypes);
  }
}

void require_contiguous_rows(Argument argument, const Array& array) {
  const int last = array.ndim - 1;
  if (array.empty || array.shape[last] <= 1 || array.strides[last] == 1) return;
  fail_argument(argument.call, ": ", argument.name, ": the last dimension has a stride of ",
                array.strides[last], " elements, takes 1");
}

void require_shape(Argument argument, const Array& array, const std::int64_t* shape, int ndim) {
  const Shape wanted(shape, shape + ndim);
  if (array.shape_list() == wanted) return;
  fail_argument(argument.call, ": ", argument.name, ": shape ", array.shape_list(), ", takes ",
                wanted);
}

/// Strides of the axes from `first` on, as many as `count`, in the last of three.
TensorLayout leading_layout(const Array& array, int first, int count, std::int64_t offset) {
  std::int64_t strides[kLeadingAxes] = {};
  for (int i = 0; i < count; ++i) {
    strides[kLeadingAxes - count + i] = array.empty ? 0 : array.strides[first + i];
  }
  return {offset, strides[0], strides[1], strides[2]};
}

StatesLayout states_layout(const Array& array, int count, std::int64_t offset) {
  const TensorLayout one = leading_layout(array, 1, count, offset);
  return {offset, array.empty ? 0 : array.strides[0], one.batch_stride, one.head_stride,
          one.row_stride};
}

/// Arrays of one call, described.
struct MergeArrays {
  Array outs, lses;
  Result out, lse;
};

MergeProblem problem_of(const MergeArrays& arrays) {
  const Array& outs = arrays.outs;
  std::int64_t extents[kLeadingAxes] = {1, 1, 1};
  const int leading = outs.ndim - 2;
  for (int i = 0; i < leading; ++i) extents[kLeadingAxes - leading + i] = outs.shape[1 + i];
  MergeProblem problem;
  problem.dtype = outs.dtype;
  problem.out_dtype = arrays.out.array.dtype;
  problem.n_states = outs.shape[0];
  problem.batch = extents[0];
  problem.heads = extents[1];
  problem.rows = extents[2];
  problem.width = outs.shape[outs.ndim - 1];
  return problem;
}

void read_states(PyObject* outs_object, PyObject* lses_object, MergeArrays& arrays) {
  const Argument outs_argument{kCall, "outs"};
  const Argument lses_argument{kCall, "lses"};
  Array& outs = arrays.outs;
  Array& lses = arrays.lses;
  import_floats(outs_argument, outs_object, outs);
  import_floats(lses_argument, lses_object, lses);
  refuse_traced(kCall, {{"outs", outs_object, outs.type.framework},
                        {"lses", lses_object, lses.type.framework}});
  if (outs.ndim < 2 || outs.ndim > kLeadingAxes + 2) {
    fail_argument(kCall, ": outs: shape ", outs.shape_list(),
                  ", takes [n, ..., D] with up to three axes between");
  }
  require_contiguous_rows(outs_argument, outs);
  if (lses.dtype != DType::f32) fail_dtype(lses_argument, dtype_name(lses.dtype), "f32");
  require_shape(lses_argument, lses, outs.shape, outs.ndim - 1);
}

void make_outputs(const Device& device, PyObject* outs_object, PyObject* out_object,
                  MergeArrays& arrays) {
  const Argument argument{kCall, "outs"};
  const Array& outs = arrays.outs;
  Array& out = arrays.out.array;
  if (out_object != nullptr) {
    const Argument out_argument{kCall, "out"};
    import_floats(out_argument, out_object, out);
    refuse_traced(kCall, {{"out", out_object, out.type.framework}});
    if (out.read_only) fail_argument(kCall, ": out: is read-only");
    if (out.copied) fail_argument(kCall, ": out: gives a copy of its memory, takes one to share");
    require_shape(out_argument, out, outs.shape + 1, outs.ndim - 1);
    require_contiguous_rows(out_argument, out);
    arrays.out.object = nb::borrow(nb::handle(out_object));
  } else {
    make_packed_result(argument, device, outs, outs_object, outs.dtype, outs.shape + 1,
                       outs.ndim - 1, arrays.out);
  }
  make_packed_result(argument, device, outs, outs_object, DType::f32, outs.shape + 1, outs.ndim - 2,
                     arrays.lse);
}

void require_same_place(const char* name, const Array& array, const MergeArrays& arrays) {
  if (array.on_metal == arrays.outs.on_metal) return;
  fail_argument(kCall, ": ", name, ": is in ", array.on_metal ? "Metal" : "host",
                " memory, but outs is not");
}

Buffer output_buffer(const Device& device, const char* name, const Result& result,
                     std::int64_t& offset) {
  if (result.buffer.valid()) return result.buffer;
  return wrap_elements(device, {kCall, name}, result.array, offset);
}

void run(const Device& device, MergeArrays& arrays) {
  MergeProblem problem = problem_of(arrays);
  const int leading = arrays.outs.ndim - 2;
  std::int64_t outs_offset = 0, lses_offset = 0, out_offset = 0, lse_offset = 0;
  const MergeOperands operands{wrap_elements(device, {kCall, "outs"}, arrays.outs, outs_offset),
                               wrap_elements(device, {kCall, "lses"}, arrays.lses, lses_offset),
                               output_buffer(device, "out", arrays.out, out_offset),
                               output_buffer(device, "lse", arrays.lse, lse_offset)};
  problem.outs = states_layout(arrays.outs, leading, outs_offset);
  problem.lses = states_layout(arrays.lses, leading, lses_offset);
  problem.out = leading_layout(arrays.out.array, 0, leading, out_offset);
  problem.lse = leading_layout(arrays.lse.array, 0, leading, lse_offset);
  without_gil([&] { merge_states(device, operands, problem); });
}

nb::tuple merge(nb::handle outs, nb::handle lses, nb::handle out) {
  MergeArrays arrays;
  read_states(outs.ptr(), lses.ptr(), arrays);
  const Device device(arrays.outs.on_metal ? "metal" : "cpu");
  make_outputs(device, outs.ptr(), out.is_none() ? nullptr : out.ptr(), arrays);
  require_same_place("lses", arrays.lses, arrays);
  require_same_place("out", arrays.out.array, arrays);
  run(device, arrays);
  const Argument argument{kCall, "outs"};
  nb::object merged = arrays.out.take(argument, outs.ptr());
  return nb::make_tuple(merged, arrays.lse.take(argument, outs.ptr()));
}

}  // namespace

void bind_merge_states(nb::module_& module) {
  module.def("merge_states", &merge, nb::arg("outs").none(), nb::arg("lses").none(),
             nb::arg("out").none() = nb::none(),
             nb::sig("def merge_states(outs: ArrayT, lses: Array, out: Array | None = None) -> "
                     "tuple[ArrayT, ArrayT]"),
             "metal_sdpa.merge_states of states that are stacked already.");
}

}  // namespace metal_sdpa::python
