// Described once, compared for every layer.
#include "prepared_call.h"

#include <algorithm>
#include <utility>

#include "errors.h"
#include "index_array.h"
#include "interrupts.h"
#include "paged_call.h"
#include "parameters.h"
#include "qkv.h"

namespace metal_sdpa::python {
namespace {

namespace nb = nanobind;

constexpr const char* kRun = "run";
constexpr const char* kUpdate = "update";

PyObject* unless_none(nb::handle value) {
  return value.is_valid() && !value.is_none() ? value.ptr() : nullptr;
}

nb::object kept(PyObject* object) {
  return object == nullptr ? nb::object() : nb::borrow(nb::handle(object));
}

// --- what an array has to look like --------------------------------------------------------------

/// Extents as the caller has them.
Shape shown_shape(const SdpaInputs& inputs, KeyRows keys, const Array& array) {
  const bool is_query = &array == &inputs.q;
  const bool is_tensor = is_query || &array == &inputs.k || &array == &inputs.v;
  if (!is_tensor) return array.shape_list();
  const bool packed = keys == KeyRows::packed || (is_query && inputs.form.packed_queries);
  if (packed) return tokens_first(array).shape_list();
  Shape shape = array.shape_list();
  const bool slots_first = keys == KeyRows::paged && !is_query && !inputs.form.heads_first;
  if (slots_first) std::swap(shape[1], shape[2]);
  return shape;
}

bool has_same_strides(const Array& got, const Array& wanted) {
  if (got.empty) return true;
  for (int axis = 0; axis < got.ndim; ++axis) {
    if (got.shape[axis] > 1 && got.strides[axis] != wanted.strides[axis]) return false;
  }
  return true;
}

/// Whether the elements of `out` stand alike in both layouts: of an axis of one entry, and of an
/// array without elements, strides say nothing.
bool is_same_place(const Array& out, const TensorLayout& a, const TensorLayout& b) {
  if (out.empty) return true;
  return (out.shape[0] == 1 || a.batch_stride == b.batch_stride) &&
         (out.shape[1] == 1 || a.head_stride == b.head_stride) &&
         (out.shape[2] == 1 || a.row_stride == b.row_stride);
}

class SameArrays {
 public:
  SameArrays(const SdpaCall& call, const SdpaInputs& got, const SdpaInputs& wanted)
      : call_(call), got_(got), wanted_(wanted) {}

  void require(const char* name, const Array& got, const Array& wanted) const {
    if (got.dtype != wanted.dtype) {
      fail(ErrorCode::unsupported_dtype, call_.name, ": ", name, ": dtype ", dtype_name(got.dtype),
           ", prepared for ", dtype_name(wanted.dtype));
    }
    const bool same_shape =
        std::equal(got.shape, got.shape + got.ndim, wanted.shape, wanted.shape + wanted.ndim);
    if (!same_shape) {
      fail_argument(call_.name, ": ", name, ": shape ", shown_shape(got_, call_.keys, got),
                    ", prepared for ", shown_shape(wanted_, call_.keys, wanted));
    }
    if (has_same_strides(got, wanted)) return;
    fail_argument(call_.name, ": ", name, ": strides ", Shape(got.strides, got.strides + got.ndim),
                  ", prepared for ", Shape(wanted.strides, wanted.strides + wanted.ndim));
  }

  void require_score(const char* name, bool is_given, bool is_prepared,
                     Array ScoreArrays::* array) const {
    if (is_given != is_prepared) {
      fail_argument(call_.name, ": ", name,
                    is_given ? ": is given, but was not when prepared" : ": is not given");
    }
    if (is_given) require(name, (*got_.score_arrays).*array, (*wanted_.score_arrays).*array);
  }

 private:
  const SdpaCall& call_;
  const SdpaInputs& got_;
  const SdpaInputs& wanted_;
};

// --- prepare ------------------------------------------------------------------------------------

/// Keys that the call's arrays reach, were all of them in use.
std::int64_t reachable_keys(const SdpaInputs& inputs, KeyRows keys) {
  if (keys == KeyRows::dense) return inputs.problem.kv_capacity;
  std::int64_t most = 0;
  for (const std::int64_t slots : inputs.slots) most = std::max(most, slots);
  if (!inputs.problem.mask.has_value()) return most;
  const Array& mask = inputs.score_arrays->mask;
  return mask.shape[3] > 1 ? std::min(most, mask.shape[3]) : most;
}

std::int64_t keys_in_use(const SdpaProblem& problem) {
  if (problem.kv_lengths.empty()) return problem.kv_len;
  return *std::max_element(problem.kv_lengths.begin(), problem.kv_lengths.end());
}

std::int64_t capacity_of(const SdpaCall& call, const SdpaInputs& inputs, PyObject* kv_capacity) {
  const std::int64_t most = reachable_keys(inputs, call.keys);
  if (kv_capacity == nullptr) return std::min<std::int64_t>(most, INT32_MAX);
  return to_int_between({"prepare", "kv_capacity"}, kv_capacity, keys_in_use(inputs.problem), most);
}

/// Where elements stand in Buffers: in those of a run, copies where the device needs them, or in
/// the caller's own, laid out like the arrays.
enum class Buffers { of_run, of_caller };

template <typename Layout>
void place_array(const Device& device, Buffers buffers, Argument argument, const Array& array,
                 Layout& layout) {
  if (array.empty) return;
  if (buffers == Buffers::of_run && needs_staging(device, array)) {
    return place(packed_placement(array), layout);
  }
  layout.offset = elements_before(argument, array);
}

SdpaProblem placed_problem(const SdpaCall& call, const Device& device, Buffers buffers,
                           const SdpaInputs& inputs, const Outputs& outputs) {
  SdpaProblem problem = inputs.problem;
  for_each_input(call, inputs, problem,
                 [&](Argument argument, PyObject*, const Array& array, auto, auto& layout) {
                   place_array(device, buffers, argument, array, layout);
                 });
  place_array(device, buffers, {call.name, "out"}, outputs.out.array, problem.out);
  return problem;
}

void forget_memory(Array& array) {
  array.data = nullptr;
  array.owner.reset();
}

Buffer table_buffer(const Device& device, const Array& table, const char* call) {
  PageTable unused;
  return input_buffer(device, {call, "block_table"}, table, unused);
}

// --- update -------------------------------------------------------------------------------------

bool takes_argument(KeyRows keys, const std::string& name) {
  const std::vector<Parameter>& parameters = signature_of(keys).parameters;
  return std::any_of(parameters.begin(), parameters.end(),
                     [&](const Parameter& parameter) { return name == parameter.name; });
}

}  // namespace

PreparedCall::PreparedCall(const SdpaCall& call, PyObject* kv_capacity)
    : name_(call.name), keys_(call.keys) {
  ReadyCall ready;
  make_ready(call, ready);
  ready.inputs.problem.kv_capacity = capacity_of(call, ready.inputs, kv_capacity);
  const Device& device = *ready.device;
  const SdpaProblem problem =
      placed_problem(call, device, Buffers::of_run, ready.inputs, ready.outputs);
  if (count_staged(call, device, ready.inputs, ready.outputs).staged > 0) {
    recorded_ = placed_problem(call, device, Buffers::of_caller, ready.inputs, ready.outputs);
    recorded_->pages = problem.pages;  // the table is the prepared one
  }
  inputs_ = std::move(ready.inputs);
  for (Array* array : {&inputs_.q, &inputs_.k, &inputs_.v}) forget_memory(*array);
  mask_ = kept(call.mask);
  sinks_ = kept(call.sinks);
  alibi_slopes_ = kept(call.alibi_slopes);
  device_object_ = kept(call.device);
  if (inputs_.block_table.has_value()) {
    const Array described = *inputs_.block_table;
    import_table({name_, "block_table"}, inputs_.block_table_object, Lifetime::owned,
                 inputs_.form.listed_pages, *inputs_.block_table);
    SameArrays(call, inputs_, inputs_).require("block_table", *inputs_.block_table, described);
    table_ = table_buffer(device, *inputs_.block_table, name_);
  }
  inputs_.block_table_object = nullptr;
  without_gil([&] { core_ = std::make_unique<PreparedSdpa>(device, problem, table_); });
}

SdpaCall PreparedCall::call_with(const Arrays& arrays) const {
  SdpaCall call;
  call.name = kRun;
  call.keys = keys_;
  call.q = arrays.q.ptr();
  call.k = arrays.k.ptr();
  call.v = arrays.v.ptr();
  call.out = unless_none(arrays.out);
  const auto given_or = [](nb::handle given, const nb::object& kept_one) {
    return unless_none(given) != nullptr ? given.ptr() : kept_one.ptr();
  };
  call.mask = given_or(arrays.mask, mask_);
  call.sinks = given_or(arrays.sinks, sinks_);
  call.alibi_slopes = given_or(arrays.alibi_slopes, alibi_slopes_);
  call.device = device_object_.ptr();
  return call;
}

/// Describes the arrays of a run; InvalidArgument where they are not like those prepared for.
void PreparedCall::import_arrays(const SdpaCall& call, SdpaInputs& inputs) const {
  inputs.problem = inputs_.problem;
  inputs.problem.out_f32 = false;  // this run's out says it
  inputs.form = inputs_.form;
  inputs.tokens = inputs_.tokens;
  import_qkv(call, inputs);
  const SameArrays same(call, inputs, inputs_);
  same.require("q", inputs.q, inputs_.q);
  same.require(call.k_name(), inputs.k, inputs_.k);
  same.require(call.v_name(), inputs.v, inputs_.v);
  if (has_score_arrays(call)) {
    read_score_arrays(call, inputs_.mask, inputs.problem, inputs.score_arrays.emplace());
  }
  const SdpaProblem& prepared = inputs_.problem;
  same.require_score("mask", call.mask != nullptr, prepared.mask.has_value(), &ScoreArrays::mask);
  same.require_score("sinks", call.sinks != nullptr, prepared.sinks.has_value(),
                     &ScoreArrays::sinks);
  same.require_score("alibi_slopes", call.alibi_slopes != nullptr,
                     prepared.alibi_slopes.has_value(), &ScoreArrays::alibi_slopes);
  refuse_traced_arrays(call, inputs);
}

void PreparedCall::require_prepared_out(const SdpaCall& call, const SdpaInputs& inputs,
                                        const Array& out) const {
  const SdpaProblem& got = inputs.problem;
  const SdpaProblem& prepared = inputs_.problem;
  if (got.out_f32 != prepared.out_f32) {
    fail(ErrorCode::unsupported_dtype, call.name, ": out: dtype ", dtype_name(got.out_dtype()),
         ", prepared for ", dtype_name(prepared.out_dtype()));
  }
  if (is_same_place(out, got.out, prepared.out)) return;
  fail_argument(call.name, ": out: ", call.out == nullptr ? "is not given" : "has other strides",
                ", prepared for strides ",
                Shape{prepared.out.batch_stride, prepared.out.head_stride, prepared.out.row_stride},
                " of sequences, heads and rows");
}

/// A run's inputs lack the table, which the checks of memory want.
void PreparedCall::refuse_hidden_overlap_of_run(const SdpaCall& call, const Device& device,
                                                const SdpaInputs& inputs,
                                                const Outputs& outputs) const {
  if (call.out == nullptr || device.kind() != DeviceKind::metal) return;
  SdpaInputs all = inputs;
  all.block_table = inputs_.block_table;
  if (all.problem.pages.has_value()) all.problem.pages->check_entries = false;
  refuse_hidden_overlap(call, device, all, outputs);
}

nb::object PreparedCall::run(const Arrays& arrays, const Buffer& scratch) const {
  const SdpaCall call = call_with(arrays);
  const Device device = core_->device();
  SdpaInputs inputs;
  Outputs outputs;
  import_arrays(call, inputs);
  if (call.out != nullptr) import_out(call, inputs, outputs.out.array);
  make_placed_outputs(call, device, inputs, outputs);
  require_prepared_out(call, inputs, outputs.out.array);
  refuse_hidden_overlap_of_run(call, device, inputs, outputs);
  const PreparedSdpa core = *core_;
  without_gil([&] {
    work_on_arrays(
        call, device, inputs, outputs,
        [&](const SdpaOperands& operands, const SdpaProblem&) { core.run(operands, scratch); });
  });
  return take_outputs(call, inputs, outputs);
}

void PreparedCall::encode(CommandEncoder& encoder, const KernelRegistry& registry,
                          const SdpaOperands& operands, const Buffer& scratch) const {
  if (!recorded_.has_value()) {
    const PreparedSdpa core = *core_;
    without_gil([&] { core.encode(encoder, registry, operands, scratch); });
    return;
  }
  SdpaProblem problem = *recorded_;
  static_cast<Visibility&>(problem) = inputs_.problem;
  const Buffer table = table_;
  const Device device = core_->device();
  without_gil(
      [&] { PreparedSdpa(device, problem, table).encode(encoder, registry, operands, scratch); });
}

/// A table that is to take the place of the prepared one, of which it has shape and strides.
Buffer PreparedCall::import_new_table(nb::handle value, Array& table) const {
  const Argument argument{kUpdate, "block_table"};
  if (!inputs_.block_table.has_value()) {
    fail_argument(kUpdate, ": block_table: is given, but ", name_, " has none");
  }
  import_table(argument, value.ptr(), Lifetime::owned, inputs_.form.listed_pages, table);
  SdpaCall call;
  call.name = kUpdate;
  call.keys = keys_;
  SameArrays(call, inputs_, inputs_).require("block_table", table, *inputs_.block_table);
  return table_buffer(core_->device(), table, kUpdate);
}

void PreparedCall::update(const nb::kwargs& changes) {
  if (changes.size() == 0) fail_argument("update: nothing to change is given");
  Visibility visibility = inputs_.problem;
  LengthCounts counts;
  if (keys_ != KeyRows::dense) counts.read = read_index_numbers;
  std::optional<Array> table;
  Buffer table_memory;
  for (const auto& [key, value] : changes) {
    const std::string name = to_text({kUpdate, "names"}, key);
    if (name == "block_table") {
      table_memory = import_new_table(value, table.emplace());
      continue;
    }
    if (name == "query_lengths" && inputs_.tokens.packed) {
      fail_argument(
          "update: query_lengths: is given, but rows of queries are packed: prepare "
          "anew");
    }
    if (!takes_argument(keys_, name)) {
      fail_argument("update: ", name, ": is given, but ", name_, " does not take it");
    }
    change_visibility(key, value, visibility, counts);
  }
  check_counts(kUpdate, counts, inputs_.problem.batch);
  if (keys_ != KeyRows::dense) {
    std::vector<std::int64_t>& lengths = visibility.kv_lengths;
    if (lengths.empty()) lengths.assign(inputs_.slots.size(), visibility.kv_len);
    visibility.kv_len = inputs_.problem.kv_capacity;
    check_lengths({kUpdate, "kv_lengths"}, lengths, "slots of the sequence",
                  [&](std::size_t b) { return inputs_.slots[b]; });
  }
  const Device device = core_->device();
  const bool is_copied =
      inputs_.block_table.has_value() && needs_staging(device, *inputs_.block_table);
  if (is_copied && !table.has_value()) {
    table_memory = table_buffer(device, *inputs_.block_table, kUpdate);
  }
  without_gil([&] { core_->update(visibility, table_memory); });
  if (table_memory.valid()) table_ = table_memory;
  static_cast<Visibility&>(inputs_.problem) = std::move(visibility);
  if (table.has_value()) inputs_.block_table = std::move(table);
}

}  // namespace metal_sdpa::python
