// Checks of shapes and dtypes between arrays; the core checks the problem itself.
#include "sdpa_problem.h"

#include <cmath>
#include <optional>

#include "core/layout.h"
#include "hidden_state.h"

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

/// A dimension that two arrays share.
void require_extent(Argument argument, const char* extent, std::int64_t got, const char* other,
                    std::int64_t wanted) {
  if (got == wanted) return;
  fail_argument(argument.call, ": ", argument.name, ": ", extent, " ", got, ", but ", other,
                " has ", wanted);
}

void require_dtype(Argument argument, DType got, DType wanted) {
  if (got == wanted) return;
  fail(ErrorCode::unsupported_dtype, argument.call, ": ", argument.name, ": dtype ",
       dtype_name(got), ", but q has ", dtype_name(wanted));
}

/// Batches, queries and keys may be none; heads and what they are made of may not.
void require_heads(Argument argument, const Array& array, const char* width) {
  if (array.shape[1] == 0) {
    fail_argument(argument.call, ": ", argument.name, ": shape ", tuple_text(array),
                  " has no heads");
  }
  if (array.shape[3] == 0) {
    fail_argument(argument.call, ": ", argument.name, ": shape ", tuple_text(array), " has a ",
                  width, " of 0");
  }
}

void check_shapes(const char* call, const Array& q, const Array& k, const Array& v) {
  const Argument k_argument{call, "k"};
  const Argument v_argument{call, "v"};
  if (q.empty || k.empty || v.empty) {
    require_heads({call, "q"}, q, "head_dim");
    require_heads(k_argument, k, "head_dim");
    require_heads(v_argument, v, "value_dim");
  }
  require_extent(k_argument, "batch", k.shape[0], "q", q.shape[0]);
  require_extent(k_argument, "head_dim", k.shape[3], "q", q.shape[3]);
  require_extent(v_argument, "batch", v.shape[0], "q", q.shape[0]);
  require_extent(v_argument, "n_kv_heads", v.shape[1], "k", k.shape[1]);
  require_extent(v_argument, "kv_capacity", v.shape[2], "k", k.shape[2]);
  require_dtype(k_argument, k.dtype, q.dtype);
  require_dtype(v_argument, v.dtype, q.dtype);
}

void set_shape(SdpaProblem& problem, const Array& q, const Array& k, const Array& v) {
  problem.dtype = q.dtype;
  problem.batch = q.shape[0];
  problem.n_heads = q.shape[1];
  problem.seq_len = q.shape[2];
  problem.head_dim = q.shape[3];
  problem.n_kv_heads = k.shape[1];
  problem.kv_capacity = k.shape[2];
  problem.value_dim = v.shape[3];
  problem.kv_len = problem.kv_capacity;
}

/// What says how many keys and where queries stand; absent where the call does not.
struct GivenLengths {
  std::optional<IntOrList> kv_lengths, q_start;
};

/// Whatever may run code of the caller (__float__, __index__, tolist): before any array is
/// described, since such code could resize or free one, which nothing holds then.
GivenLengths read_options(SdpaProblem& problem, const SdpaCall& call) {
  if (call.causal != nullptr) problem.causal = to_bool({call.name, "causal"}, call.causal);
  if (call.return_lse != nullptr) {
    problem.return_lse = to_bool({call.name, "return_lse"}, call.return_lse);
  }
  if (call.scale != nullptr) {
    problem.scale = static_cast<float>(to_double({call.name, "scale"}, call.scale));
  }
  GivenLengths given;
  if (call.kv_lengths != nullptr) {
    given.kv_lengths = to_int_or_list({call.name, "kv_lengths"}, call.kv_lengths);
  }
  if (call.q_start != nullptr) {
    given.q_start = to_int_or_list({call.name, "q_start"}, call.q_start);
  }
  return given;
}

void set_default_scale(SdpaProblem& problem) {
  problem.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(problem.head_dim)));
}

/// One entry for each sequence; the core checks the entries themselves.
std::vector<std::int64_t> one_each(Argument argument, std::vector<std::int64_t> entries,
                                   std::int64_t batch) {
  if (static_cast<std::int64_t>(entries.size()) == batch) return entries;
  fail_argument(argument.call, ": ", argument.name, ": ", entries.size(),
                " entries, but the batch has ", batch);
}

void set_lengths(SdpaProblem& problem, const SdpaCall& call, GivenLengths& given) {
  if (given.kv_lengths.has_value()) {
    const Argument argument{call.name, "kv_lengths"};
    IntOrList& lengths = *given.kv_lengths;
    if (lengths.single) problem.kv_len = lengths.value;
    if (!lengths.single) problem.kv_lengths = one_each(argument, lengths.list, problem.batch);
  }
  if (given.q_start.has_value()) {
    const Argument argument{call.name, "q_start"};
    IntOrList& starts = *given.q_start;
    if (starts.single) problem.q_start = starts.value;
    if (!starts.single) problem.q_starts = one_each(argument, starts.list, problem.batch);
  }
}

void refuse_traced_arrays(const SdpaCall& call, const SdpaInputs& inputs) {
  const ArrayType& q = inputs.q.type;
  const bool has_other_out = call.out != nullptr && Py_TYPE(call.out) != q.type;
  const ArrayType out = has_other_out ? array_type_of(call.out) : q;
  const bool plain = q.is_plain() && inputs.k.type.is_plain() && inputs.v.type.is_plain();
  if (plain && out.is_plain()) return;
  refuse_traced(call.name, {{"q", call.q, q.framework},
                            {"k", call.k, inputs.k.type.framework},
                            {"v", call.v, inputs.v.type.framework},
                            {"out", call.out, out.framework}});
}

}  // namespace

void import_tensor(Argument argument, PyObject* object, const char* extents, Array& array) {
  import_array(argument, object, Lifetime::borrowed, kDTypes, array);
  // NumPy has no bfloat16 of its own: its uint16 arrays hold bfloat16 bits.
  if (array.dtype == DType::u16 && array.type.framework == Framework::numpy) {
    array.dtype = DType::bf16;
  }
  const DType dtype = array.dtype;
  if (dtype != DType::f32 && dtype != DType::f16 && dtype != DType::bf16) {
    fail_dtype(argument, dtype_name(dtype), kDTypes);
  }
  if (array.ndim != 4) {
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

Buffer wrap_tensor(const Device& device, Argument argument, const Array& array,
                   TensorLayout& layout) {
  if (array.empty) return {};
  const std::int64_t size = static_cast<std::int64_t>(dtype_size(array.dtype));
  const TensorView view{array.shape[0], array.shape[1], array.shape[2],
                        array.shape[3], layout,         size};
  std::int64_t first = 0;
  std::int64_t last = 0;
  if (!element_extent(view, first, last)) {
    fail_argument(argument.call, ": ", argument.name,
                  ": its strides reach further than 64 bits count");
  }
  const std::int64_t elements = last - first + 1;
  layout.offset = -first;
  const auto byte_len = static_cast<std::size_t>(elements * size);
  if (array.on_metal) {
    const std::uint64_t offset = array.byte_offset + static_cast<std::uint64_t>(first * size);
    return device.wrap_native(array.data, offset, byte_len, array.dtype, {}, array.owner);
  }
  const HostMemory memory{static_cast<char*>(array.data) + first * size, byte_len, array.read_only,
                          array.owner};
  // The layout says where elements are; the Buffer's own shape plays no part and costs memory.
  return device.wrap(memory, array.dtype, {});
}

void read_sdpa_inputs(const SdpaCall& call, SdpaInputs& inputs) {
  SdpaProblem& problem = inputs.problem;
  GivenLengths given = read_options(problem, call);
  import_tensor({call.name, "q"}, call.q, "[B, Hq, L, D]", inputs.q);
  import_tensor({call.name, "k"}, call.k, "[B, Hkv, S, D]", inputs.k);
  import_tensor({call.name, "v"}, call.v, "[B, Hkv, S, Dv]", inputs.v);
  refuse_traced_arrays(call, inputs);
  check_shapes(call.name, inputs.q, inputs.k, inputs.v);
  set_shape(problem, inputs.q, inputs.k, inputs.v);
  if (call.scale == nullptr) set_default_scale(problem);
  set_lengths(problem, call, given);
  problem.set_packed_layouts();
  problem.q = tensor_layout({call.name, "q"}, inputs.q);
  problem.k = tensor_layout({call.name, "k"}, inputs.k);
  problem.v = tensor_layout({call.name, "v"}, inputs.v);
}

}  // namespace metal_sdpa::python
