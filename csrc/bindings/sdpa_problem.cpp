// Checks of shapes and dtypes between arrays; the core checks the problem itself.
#include "sdpa_problem.h"

#include <cmath>

#include "errors.h"
#include "hidden_state.h"
#include "index_array.h"
#include "paged_call.h"
#include "qkv.h"
#include "varlen_call.h"

namespace metal_sdpa::python {
namespace {

constexpr const char* kDTypes = "f32, f16 or bf16";

/// The shape as Python writes it.
std::string tuple_text(const Array& array) {
  std::string text = text_of(array.shape_list());
  text.front() = '(';
  text.back() = ')';
  return text;
}

void require_dtype(Argument argument, DType got, DType wanted) {
  if (got == wanted) return;
  fail(ErrorCode::unsupported_dtype, argument.call, ": ", argument.name, ": dtype ",
       dtype_name(got), ", but q has ", dtype_name(wanted));
}

float read_softcap(Argument argument, PyObject* value) {
  const auto softcap = static_cast<float>(to_double(argument, value));
  if (softcap > 0 && std::isfinite(softcap)) return softcap;
  fail_argument(argument.call, ": ", argument.name, ": ", text_or_empty(value),
                ", takes a finite f32 above 0, or None for no cap");
}

void set_default_scale(SdpaProblem& problem) {
  problem.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(problem.head_dim)));
}

/// Distances in elements from the first element of an array to the ones before and behind it that
/// lie farthest.
struct Reach {
  std::int64_t before = 0;
  std::int64_t behind = 0;
};

Reach reach_of(Argument argument, const Array& array) {
  Reach reach;
  for (int axis = 0; axis < array.ndim; ++axis) {
    std::int64_t distance = 0;
    const bool fits =
        !__builtin_mul_overflow(array.shape[axis] - 1, array.strides[axis], &distance);
    std::int64_t& end = distance < 0 ? reach.before : reach.behind;
    if (fits && !__builtin_add_overflow(end, distance, &end)) continue;
    fail_argument(argument.call, ": ", argument.name,
                  ": its strides reach further than 64 bits count");
  }
  return reach;
}

Framework framework_of(PyObject* object) {
  return object == nullptr ? Framework::other : array_type_of(object).framework;
}

void check_dense_shapes(const SdpaCall& call, const SdpaInputs& inputs) {
  const Array& q = inputs.q;
  const Array& k = inputs.k;
  const Array& v = inputs.v;
  const Argument k_argument{call.name, "k"};
  const Argument v_argument{call.name, "v"};
  require_heads({call.name, "q"}, q, 1, "head_dim");
  require_heads(k_argument, k, 1, "head_dim");
  require_heads(v_argument, v, 1, "value_dim");
  require_extent(k_argument, "batch", k.shape[0], "q", q.shape[0]);
  require_extent(v_argument, "batch", v.shape[0], "q", q.shape[0]);
  require_extent(v_argument, "kv_capacity", v.shape[2], "k", k.shape[2]);
}

void read_dense_inputs(const SdpaCall& call, SdpaInputs& inputs) {
  SdpaProblem& problem = inputs.problem;
  const LengthCounts counts = read_options(call, problem);
  import_qkv(call, inputs);
  refuse_traced_arrays(call, inputs);
  check_dense_shapes(call, inputs);
  set_heads(call, inputs);
  problem.batch = inputs.q.shape[0];
  problem.seq_len = inputs.q.shape[2];
  problem.kv_capacity = inputs.k.shape[2];
  const bool one_length = call.kv_lengths != nullptr && counts.kv_lengths < 0;
  if (!one_length) problem.kv_len = problem.kv_capacity;
  check_counts(call.name, counts, problem.batch);
  const MaskExtents mask{4, {problem.batch, problem.n_heads, problem.seq_len, problem.kv_capacity}};
  finish_problem(call, mask, inputs);
}

}  // namespace

LengthCounts read_options(const SdpaCall& call, SdpaProblem& problem) {
  LengthCounts counts;
  if (call.keys != KeyRows::dense) counts.read = read_index_numbers;
  problem.causal = call.keys == KeyRows::paged;
  const auto read = [&](const char* name, PyObject* value, const auto& take) {
    if (value != nullptr) take(Argument{call.name, name}, value);
  };
  const auto read_lengths = [&](const char* name, PyObject* value, auto& take) {
    if (value != nullptr) take(Argument{call.name, name}, value, problem, counts);
  };
  read("causal", call.causal,
       [&](Argument argument, PyObject* value) { problem.causal = to_bool(argument, value); });
  read("return_lse", call.return_lse,
       [&](Argument argument, PyObject* value) { problem.return_lse = to_bool(argument, value); });
  read("scale", call.scale, [&](Argument argument, PyObject* value) {
    problem.scale = static_cast<float>(to_double(argument, value));
  });
  read("softcap", call.softcap, [&](Argument argument, PyObject* value) {
    problem.softcap = read_softcap(argument, value);
  });
  read("window", call.window,
       [&](Argument argument, PyObject* value) { read_window(argument, value, problem); });
  read("key_offset", call.key_offset,
       [&](Argument argument, PyObject* value) { problem.key_offset = to_int64(argument, value); });
  read("key_stride", call.key_stride,
       [&](Argument argument, PyObject* value) { problem.key_stride = to_int64(argument, value); });
  read_lengths("kv_lengths", call.kv_lengths, read_kv_lengths);
  read_lengths("kv_starts", call.kv_starts, read_kv_starts);
  read_lengths("q_start", call.q_start, read_q_start);
  read_lengths("query_lengths", call.query_lengths, read_query_lengths);
  return counts;
}

void refuse_traced_arrays(const SdpaCall& call, const SdpaInputs& inputs) {
  const ArrayType& q = inputs.q.type;
  const bool has_other_out = call.out != nullptr && Py_TYPE(call.out) != q.type;
  const ArrayType out = has_other_out ? array_type_of(call.out) : q;
  const bool plain = q.is_plain() && inputs.k.type.is_plain() && inputs.v.type.is_plain();
  if (plain && out.is_plain() && !has_score_arrays(call) && call.block_table == nullptr) {
    return;
  }
  refuse_traced(call.name, {{"q", call.q, q.framework},
                            {call.k_name(), call.k, inputs.k.type.framework},
                            {call.v_name(), call.v, inputs.v.type.framework},
                            {"mask", call.mask, framework_of(call.mask)},
                            {"sinks", call.sinks, framework_of(call.sinks)},
                            {"alibi_slopes", call.alibi_slopes, framework_of(call.alibi_slopes)},
                            {"block_table", inputs.block_table_object,
                             framework_of(inputs.block_table_object)},
                            {"out", call.out, out.framework}});
}

void require_heads(Argument argument, const Array& array, int head_axis, const char* width) {
  if (!array.empty) return;
  if (array.shape[head_axis] == 0) {
    fail_argument(argument.call, ": ", argument.name, ": shape ", tuple_text(array),
                  " has no heads");
  }
  if (array.shape[array.ndim - 1] == 0) {
    fail_argument(argument.call, ": ", argument.name, ": shape ", tuple_text(array), " has a ",
                  width, " of 0");
  }
}

void require_extent(Argument argument, const char* extent, std::int64_t got, const char* other,
                    std::int64_t wanted) {
  if (got == wanted) return;
  fail_argument(argument.call, ": ", argument.name, ": ", extent, " ", got, ", but ", other,
                " has ", wanted);
}

void set_heads(const SdpaCall& call, SdpaInputs& inputs) {
  const Array& q = inputs.q;
  const Array& k = inputs.k;
  const Array& v = inputs.v;
  const Argument k_argument{call.name, call.k_name()};
  const Argument v_argument{call.name, call.v_name()};
  require_extent(k_argument, "head_dim", k.shape[3], "q", q.shape[3]);
  require_extent(v_argument, "n_kv_heads", v.shape[1], call.k_name(), k.shape[1]);
  require_dtype(k_argument, k.dtype, q.dtype);
  require_dtype(v_argument, v.dtype, q.dtype);
  SdpaProblem& problem = inputs.problem;
  problem.dtype = q.dtype;
  problem.n_heads = q.shape[1];
  problem.head_dim = q.shape[3];
  problem.n_kv_heads = k.shape[1];
  problem.value_dim = v.shape[3];
}

void finish_problem(const SdpaCall& call, const MaskExtents& mask, SdpaInputs& inputs) {
  SdpaProblem& problem = inputs.problem;
  inputs.mask = mask;
  if (call.scale == nullptr) set_default_scale(problem);
  if (has_score_arrays(call)) {
    read_score_arrays(call, mask, problem, inputs.score_arrays.emplace());
  }
  problem.set_packed_layouts();
  problem.q = tensor_layout({call.name, "q"}, inputs.q);
  problem.k = tensor_layout({call.name, call.k_name()}, inputs.k);
  problem.v = tensor_layout({call.name, call.v_name()}, inputs.v);
}

void import_tensor(Argument argument, PyObject* object, const char* extents, int ndim,
                   Array& array) {
  import_array(argument, object, Lifetime::borrowed, kDTypes, array);
  // NumPy has no bfloat16 of its own: its uint16 arrays hold bfloat16 bits.
  if (array.dtype == DType::u16 && array.type.framework == Framework::numpy) {
    array.dtype = DType::bf16;
  }
  const DType dtype = array.dtype;
  if (dtype != DType::f32 && dtype != DType::f16 && dtype != DType::bf16) {
    fail_dtype(argument, dtype_name(dtype), kDTypes);
  }
  if (array.ndim != ndim) {
    fail_argument(argument.call, ": ", argument.name, ": shape ", array.shape_list(), " has ",
                  array.ndim, " dimensions, takes ", extents);
  }
}

TensorLayout tensor_layout(Argument argument, const Array& array) {
  if (array.empty) return {};  // NumPy gives such arrays strides of 0
  if (array.shape[3] > 1 && array.strides[3] != 1) {
    fail_argument(argument.call, ": ", argument.name, ": the last dimension has a stride of ",
                  array.strides[3], " elements, takes 1");
  }
  return {0, array.strides[0], array.strides[1], array.strides[2]};
}

std::int64_t elements_before(Argument argument, const Array& array) {
  return array.empty ? 0 : -reach_of(argument, array).before;
}

Buffer wrap_elements(const Device& device, Argument argument, const Array& array,
                     std::int64_t& offset) {
  if (array.empty) return {};
  const Reach reach = reach_of(argument, array);
  const auto size = static_cast<std::int64_t>(dtype_size(array.dtype));
  std::int64_t bytes = 0;
  const bool fits = !__builtin_sub_overflow(reach.behind, reach.before, &bytes) &&
                    !__builtin_add_overflow(bytes, 1, &bytes) &&
                    !__builtin_mul_overflow(bytes, size, &bytes);
  if (!fits) {
    fail_argument(argument.call, ": ", argument.name,
                  ": its strides reach further than 64 bits count");
  }
  offset = -reach.before;
  const auto byte_len = static_cast<std::size_t>(bytes);
  const std::int64_t before = reach.before * size;
  if (array.on_metal) {
    const std::uint64_t start = array.byte_offset + static_cast<std::uint64_t>(before);
    return device.wrap_native(array.data, start, byte_len, array.dtype, {}, array.owner);
  }
  const HostMemory memory{static_cast<char*>(array.data) + before, byte_len, array.read_only,
                          array.owner};
  // The layout says where elements are; the Buffer's own shape plays no part and costs memory.
  return device.wrap(memory, array.dtype, {});
}

void read_sdpa_inputs(const SdpaCall& call, SdpaInputs& inputs) {
  if (call.keys == KeyRows::packed) return read_varlen_inputs(call, inputs);
  if (call.keys == KeyRows::paged) return read_paged_inputs(call, inputs);
  read_dense_inputs(call, inputs);
}

}  // namespace metal_sdpa::python
