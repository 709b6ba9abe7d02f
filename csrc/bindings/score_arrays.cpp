// Broadcasting is a matter of strides: nothing is copied.
#include "score_arrays.h"

#include <algorithm>

namespace metal_sdpa::python {
namespace {

constexpr const char* kMaskDTypes = "bool, f32, f16 or bf16";
constexpr const char* kSinkDTypes = "f32 or q's dtype";
constexpr const char* kSlopeDTypes = "f32";
constexpr int kAxes = 4;

/// Whether the array's axes, counted from the right, are those of `extents` or 1.
bool broadcasts(const Array& array, const MaskExtents& mask) {
  if (array.ndim > mask.rank) return false;
  for (int i = 0; i < array.ndim; ++i) {
    const std::int64_t extent = array.shape[i];
    const std::int64_t wanted = mask.extents[kAxes - array.ndim + i];
    const bool is_longer = mask.takes_more_keys && i + 1 == array.ndim && extent > wanted;
    if (extent != 1 && extent != wanted && !is_longer) return false;
  }
  return true;
}

[[noreturn]] void fail_mask_shape(Argument argument, const Array& array, const MaskExtents& mask) {
  const std::int64_t* const first = mask.extents + kAxes - mask.rank;
  const Shape wanted(first, first + mask.rank);
  const char* more = mask.takes_more_keys ? ", or more entries on the last axis" : "";
  fail_argument(argument.call, ": ", argument.name, ": shape ", array.shape_list(),
                ", takes what broadcasts to ", wanted, more);
}

/// Gives an array that broadcasts its four axes. Those of stride 0 count as size 1 too, so that
/// what memory it has is told by its extents.
void stretch(Array& array) {
  const int missing = kAxes - array.ndim;
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    const int own = axis - missing;
    const std::int64_t extent = own < 0 ? 1 : array.shape[own];
    const std::int64_t stride = extent == 1 || array.empty ? 0 : array.strides[own];
    array.shape[axis] = stride == 0 && !array.empty ? 1 : extent;
    array.strides[axis] = stride;
  }
  array.ndim = kAxes;
}

/// The caller's u8 is a number, that of a Buffer of ours is a truth value: it has no other type
/// for one.
bool is_boolean(const Array& array, PyObject* object) {
  return array.boolean || (array.dtype == DType::u8 && nb::isinstance<Buffer>(object));
}

void import_mask(Argument argument, PyObject* object, const MaskExtents& mask, Array& array) {
  import_array(argument, object, Lifetime::borrowed, {kMaskDTypes, true}, array);
  const DType dtype = array.dtype;
  const bool is_number = dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
  if (!is_number && !is_boolean(array, object)) {
    fail_dtype(argument, dtype_name(dtype), kMaskDTypes);
  }
  if (!broadcasts(array, mask)) fail_mask_shape(argument, array, mask);
  stretch(array);
}

void import_sinks(Argument argument, PyObject* object, const SdpaProblem& problem, Array& array) {
  import_array(argument, object, Lifetime::borrowed, kSinkDTypes, array);
  const bool holds_bits = array.dtype == DType::u16 && array.type.framework == Framework::numpy;
  if (holds_bits && problem.dtype == DType::bf16) array.dtype = DType::bf16;
  if (array.dtype != DType::f32 && array.dtype != problem.dtype) {
    fail_dtype(argument, dtype_name(array.dtype), kSinkDTypes);
  }
  const bool fits = array.ndim == 0 || (array.ndim == 1 && array.shape[0] == problem.n_heads);
  if (!fits) {
    fail_argument(argument.call, ": ", argument.name, ": shape ", array.shape_list(), ", takes [",
                  problem.n_heads, "], or one number for all heads");
  }
}

void import_slopes(Argument argument, PyObject* object, const SdpaProblem& problem, Array& array) {
  import_array(argument, object, Lifetime::borrowed, kSlopeDTypes, array);
  if (array.dtype != DType::f32) fail_dtype(argument, dtype_name(array.dtype), kSlopeDTypes);
  const std::int64_t heads = problem.n_heads;
  const bool fits = (array.ndim == 1 && array.shape[0] == heads) ||
                    (array.ndim == 2 && array.shape[0] == problem.batch && array.shape[1] == heads);
  if (!fits) {
    fail_argument(argument.call, ": ", argument.name, ": shape ", array.shape_list(), ", takes [",
                  heads, "] or [", problem.batch, ", ", heads, "]");
  }
}

/// The axes of [Hq] and [B, Hq] become those of [B, Hq, 1, 1].
HeadLayout head_layout(Array& array) {
  if (array.ndim > 0) {
    for (int added = 0; added < 2; ++added) array.shape[array.ndim++] = 1;
  }
  stretch(array);
  return {array.dtype, 0, array.strides[0], array.strides[1]};
}

}  // namespace

void read_score_arrays(const SdpaCall& call, const MaskExtents& mask, SdpaProblem& problem,
                       ScoreArrays& arrays) {
  if (call.mask != nullptr) {
    import_mask({call.name, "mask"}, call.mask, mask, arrays.mask);
    const std::int64_t* strides = arrays.mask.strides;
    problem.mask = {arrays.mask.dtype, 0, strides[0], strides[1], strides[2], strides[3]};
  }
  if (call.sinks != nullptr) {
    import_sinks({call.name, "sinks"}, call.sinks, problem, arrays.sinks);
    problem.sinks = head_layout(arrays.sinks);
  }
  if (call.alibi_slopes != nullptr) {
    import_slopes({call.name, "alibi_slopes"}, call.alibi_slopes, problem, arrays.alibi_slopes);
    problem.alibi_slopes = head_layout(arrays.alibi_slopes);
  }
}

}  // namespace metal_sdpa::python
