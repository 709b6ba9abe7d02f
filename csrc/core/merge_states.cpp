// A merge of states: its checks, and one dispatch.
#include "metal_sdpa/merge_states.h"

#include <algorithm>
#include <utility>

#include "core/direct_bindings.h"
#include "core/encoder_state.h"
#include "core/layout.h"
#include "core/registry.h"
#include "core/text.h"
#include "shaders/merge_states_args.h"

namespace metal_sdpa {
namespace {

constexpr const char* kCall = "merge_states";

/// One operand: state i of several, or the only one.
struct MergeOperand {
  const char* name;
  const Buffer* buffer;
  TensorView view;  ///< of state 0
  std::int64_t states = 1;
  std::int64_t state_stride = 0;

  TensorView state(std::int64_t i) const {
    TensorView one = view;
    one.layout.offset += i * state_stride;
    return one;
  }
};

TensorLayout layout_of(const StatesLayout& states) {
  return {states.offset, states.batch_stride, states.head_stride, states.row_stride};
}

TensorView view_of(const MergeProblem& p, std::int64_t width, const TensorLayout& layout,
                   DType dtype) {
  return {p.batch, p.heads, p.rows, width, layout, static_cast<std::int64_t>(dtype_size(dtype))};
}

bool is_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

void check_extent_of(const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value >= least && value <= most) return;
  fail_argument(kCall, ": ", name, ": ", value, ", takes ", least, " to ", most);
}

void check_problem(const MergeProblem& p, const DeviceLimits& limits) {
  for (const DType dtype : {p.dtype, p.out_dtype}) {
    if (is_float(dtype)) continue;
    fail(ErrorCode::unsupported_dtype, kCall, ": dtype ", dtype_name(dtype),
         ", takes f32, f16 or bf16");
  }
  check_extent_of("n_states", p.n_states, 1, INT32_MAX);
  check_extent_of("batch", p.batch, 0, INT32_MAX);
  check_extent_of("heads", p.heads, 1, INT32_MAX);
  check_extent_of("rows", p.rows, 0, INT32_MAX);
  check_extent_of("width", p.width, 1, limits.max_head_dim);
}

void check_buffer(const MergeOperand& operand, DType dtype, const Backend& backend) {
  const Buffer& buffer = *operand.buffer;
  if (!buffer.valid()) {
    if (has_no_element(operand.view)) return;
    fail_argument(kCall, ": ", operand.name, ": the buffer is empty");
  }
  if (buffer.storage()->backend != &backend) {
    fail_argument(kCall, ": ", operand.name, ": the buffer belongs to another device than ",
                  device_kind_name(backend.kind()));
  }
  if (buffer.dtype() == dtype) return;
  fail(ErrorCode::unsupported_dtype, kCall, ": ", operand.name, ": dtype ",
       dtype_name(buffer.dtype()), ", takes ", dtype_name(dtype));
}

/// Elements first..last of all states; InvalidArgument where they leave the buffer.
AddressRange check_reach(const MergeOperand& operand) {
  if (has_no_element(operand.view)) return {0, 0};
  std::int64_t step = 0;
  TensorView last_state = operand.view;
  std::int64_t first = 0, last = 0, other_first = 0, other_last = 0;
  const bool fits =
      !__builtin_mul_overflow(operand.states - 1, operand.state_stride, &step) &&
      !__builtin_add_overflow(last_state.layout.offset, step, &last_state.layout.offset) &&
      element_extent(operand.view, first, last) &&
      element_extent(last_state, other_first, other_last);
  if (!fits) fail_argument(kCall, ": ", operand.name, ": its strides reach further than 64 bits");
  first = std::min(first, other_first);
  last = std::max(last, other_last);
  const std::int64_t size = operand.view.element_size;
  const std::int64_t elements = static_cast<std::int64_t>(operand.buffer->byte_len()) / size;
  if (first < 0 || last >= elements) {
    fail_argument(kCall, ": ", operand.name, ": elements ", first, " to ", last,
                  " are touched, but the buffer has ", elements);
  }
  const std::uint64_t base = operand.buffer->address();
  return {base + static_cast<std::uint64_t>(first * size),
          base + static_cast<std::uint64_t>((last + 1) * size)};
}

/// Strides that a second index uses.
bool same_place(const TensorView& a, const Buffer& a_buffer, const TensorView& b,
                const Buffer& b_buffer) {
  const auto same_stride = [](std::int64_t count, std::int64_t x, std::int64_t y) {
    return count < 2 || x == y;
  };
  const auto start = [](const TensorView& view, const Buffer& buffer) {
    return static_cast<std::int64_t>(buffer.address()) + view.layout.offset * view.element_size;
  };
  return a.element_size == b.element_size && start(a, a_buffer) == start(b, b_buffer) &&
         same_stride(a.batch, a.layout.batch_stride, b.layout.batch_stride) &&
         same_stride(a.heads, a.layout.head_stride, b.layout.head_stride) &&
         same_stride(a.rows, a.layout.row_stride, b.layout.row_stride);
}

void check_apart(const MergeOperand& output, const AddressRange& output_range,
                 const MergeOperand& input, const AddressRange& input_range, bool may_be_same) {
  if (output_range.end <= input_range.begin || input_range.end <= output_range.begin) return;
  for (std::int64_t i = 0; i < input.states; ++i) {
    const TensorView state = input.state(i);
    if (may_be_same && same_place(output.view, *output.buffer, state, *input.buffer)) continue;
    if (!views_overlap(output.view, output.buffer->address(), state, input.buffer->address())) {
      continue;
    }
    fail_argument(kCall, ": ", output.name, ": overlaps ", input.name,
                  ", and is not one state's own memory");
  }
}

void check_output(const MergeOperand& output) {
  if (!output.buffer->valid()) return;
  if (output.buffer->read_only()) {
    fail_argument(kCall, ": ", output.name, ": the buffer is read-only");
  }
  if (overlaps_itself(output.view)) {
    fail_argument(kCall, ": ", output.name, ": its strides make elements overlap each other");
  }
}

struct CheckedRanges {
  AddressRange outs, lses, out, lse;
};

CheckedRanges check_operands(const MergeProblem& p, const MergeOperands& x,
                             const Backend& backend) {
  const MergeOperand outs{"outs", &x.outs, view_of(p, p.width, layout_of(p.outs), p.dtype),
                          p.n_states, p.outs.state_stride};
  const MergeOperand lses{"lses", &x.lses, view_of(p, 1, layout_of(p.lses), DType::f32), p.n_states,
                          p.lses.state_stride};
  const MergeOperand out{"out", &x.out, view_of(p, p.width, p.out, p.out_dtype)};
  const MergeOperand lse{"lse", &x.lse, view_of(p, 1, p.lse, DType::f32)};
  check_buffer(outs, p.dtype, backend);
  check_buffer(lses, DType::f32, backend);
  check_buffer(out, p.out_dtype, backend);
  check_buffer(lse, DType::f32, backend);
  const CheckedRanges ranges{check_reach(outs), check_reach(lses), check_reach(out),
                             check_reach(lse)};
  check_output(out);
  check_output(lse);
  check_apart(out, ranges.out, outs, ranges.outs, p.dtype == p.out_dtype);
  check_apart(out, ranges.out, lses, ranges.lses, false);
  check_apart(lse, ranges.lse, lses, ranges.lses, true);
  check_apart(lse, ranges.lse, outs, ranges.outs, false);
  check_apart(lse, ranges.lse, out, ranges.out, false);
  return ranges;
}

MergeArgs args_of(const MergeProblem& p) {
  MergeArgs args{};
  args.outs_stride = {p.outs.state_stride, p.outs.batch_stride, p.outs.head_stride,
                      p.outs.row_stride};
  args.lses_stride = {p.lses.state_stride, p.lses.batch_stride, p.lses.head_stride,
                      p.lses.row_stride};
  args.out_stride = {p.out.batch_stride, p.out.head_stride, p.out.row_stride};
  args.lse_stride = {p.lse.batch_stride, p.lse.head_stride, p.lse.row_stride};
  args.outs_offset = p.outs.offset;
  args.lses_offset = p.lses.offset;
  args.out_offset = p.out.offset;
  args.lse_offset = p.lse.offset;
  args.n_states = static_cast<sdpa_u32>(p.n_states);
  args.batch = static_cast<sdpa_u32>(p.batch);
  args.heads = static_cast<sdpa_u32>(p.heads);
  args.rows = static_cast<sdpa_u32>(p.rows);
  args.width = static_cast<sdpa_u32>(p.width);
  return args;
}

DispatchRecord record_of(const KernelRegistry& registry, const MergeProblem& p,
                         const MergeOperands& x, const CheckedRanges& ranges) {
  DispatchRecord record;
  record.kind = OpKind::other;
  Dispatch& dispatch = record.dispatch;
  dispatch.pipeline = plan_pipeline(
      registry, text_of("merge_states_", dtype_name(p.dtype), "_", dtype_name(p.out_dtype)), {});
  dispatch.bindings = {memory_binding(SDPA_STATES_BUFFER_OUTS, x.outs),
                       memory_binding(SDPA_STATES_BUFFER_LSES, x.lses),
                       memory_binding(SDPA_STATES_BUFFER_OUT, x.out),
                       memory_binding(SDPA_STATES_BUFFER_LSE, x.lse),
                       args_binding(SDPA_STATES_BUFFER_ARGS, args_of(p))};
  dispatch.threadgroups = {static_cast<std::uint32_t>(p.batch), static_cast<std::uint32_t>(p.heads),
                           static_cast<std::uint32_t>(p.rows)};
  dispatch.threadgroup_size = {SDPA_STATES_COLUMNS, 1, 1};
  // A weighted sum that carries its error along, in multiply-adds of the attention kernels.
  constexpr double kFlopsPerElement = 8;
  dispatch.flops = kFlopsPerElement * static_cast<double>(p.n_states * p.width) *
                   static_cast<double>(dispatch.threadgroups.count());
  record.access.declared = true;
  record.access.reads = {ranges.outs, ranges.lses};
  record.access.writes = {ranges.out, ranges.lse};
  return record;
}

/// Strides that a second index uses are kept, the others 0: kernels multiply them all the same.
MergeProblem with_used_strides(MergeProblem p) {
  const auto clear = [&p](auto& layout) {
    if (p.batch < 2) layout.batch_stride = 0;
    if (p.heads < 2) layout.head_stride = 0;
    if (p.rows < 2) layout.row_stride = 0;
  };
  clear(p.outs);
  clear(p.lses);
  clear(p.out);
  clear(p.lse);
  if (p.n_states < 2) p.outs.state_stride = p.lses.state_stride = 0;
  return p;
}

}  // namespace

void MergeProblem::set_packed_layouts() {
  const auto packed = [this](std::int64_t row) {
    const std::int64_t head = saturated_product(rows, row);
    return TensorLayout{0, saturated_product(heads, head), head, row};
  };
  const auto states = [this](const TensorLayout& one) {
    return StatesLayout{0, saturated_product(batch, one.batch_stride), one.batch_stride,
                        one.head_stride, one.row_stride};
  };
  out = packed(width);
  lse = packed(1);
  outs = states(out);
  lses = states(lse);
}

void encode_merge_states(CommandEncoder& encoder, const KernelRegistry& registry,
                         const Device& device, const MergeOperands& operands,
                         const MergeProblem& problem) {
  EncoderState& state = encoder.state();
  state.require_encoding(kCall);
  if (!(state.device == device)) fail_argument(kCall, ": encoder: is of another device");
  if (!(registry.device() == device)) fail_argument(kCall, ": registry: is of another device");
  check_problem(problem, device.limits());
  const MergeProblem used = with_used_strides(problem);
  const CheckedRanges ranges = check_operands(used, operands, *device.backend());
  if (used.batch == 0 || used.rows == 0) return;
  state.record(record_of(registry, used, operands, ranges));
}

void merge_states(const Device& device, const MergeOperands& operands,
                  const MergeProblem& problem) {
  CommandEncoder encoder(device);
  encode_merge_states(encoder, default_registry(device), device, operands, problem);
  encoder.commit_and_wait();
}

}  // namespace metal_sdpa
