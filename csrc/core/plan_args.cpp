// Argument blocks, bindings and ranges of plan steps.
#include "core/plan_args.h"

#include <algorithm>
#include <cstring>

#include "core/operands.h"

namespace metal_sdpa {
namespace {

/// A stride that no second index uses may be any number: kernels, which also look ahead of the rows
/// they read, get 0 for it.
SdpaStrides strides_of(const SdpaProblem& problem, PlanOperand operand) {
  const TensorView view = operand_info(operand).view(problem);
  return {view.batch > 1 ? view.layout.batch_stride : 0,
          view.heads > 1 ? view.layout.head_stride : 0, view.rows > 1 ? view.layout.row_stride : 0};
}

template <typename T>
std::vector<std::byte> bytes_of(const std::vector<T>& items) {
  std::vector<std::byte> bytes(items.size() * sizeof(T));
  std::memcpy(bytes.data(), items.data(), bytes.size());
  return bytes;
}

std::vector<SdpaSequence> sequences_of(const SdpaProblem& problem) {
  std::vector<SdpaSequence> sequences;
  for (std::int64_t b = 0; b < problem.batch; ++b) sequences.push_back(sequence_of(problem, b));
  return sequences;
}

sdpa_u32 element_kind(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return SDPA_ELEMENT_F32;
    case DType::f16:
      return SDPA_ELEMENT_F16;
    case DType::bf16:
      return SDPA_ELEMENT_BF16;
    default:
      return SDPA_ELEMENT_BOOL;
  }
}

/// Where rows of lse, packed keys and pages stand.
void set_place_args(const SdpaProblem& problem, SdpaArgs& args) {
  args.lse_head = problem.has_packed_queries() ? problem.q_total : problem.seq_len;
  args.lse_batch = problem.has_packed_queries() ? 0 : problem.n_heads * problem.seq_len;
  args.packed_rows = problem.has_packed_queries() ? 1 : 0;
  if (!problem.pages.has_value()) return;
  args.page_len = static_cast<sdpa_u32>(problem.pages->page_len);
  args.table_kind = problem.pages->dtype == DType::i64 ? SDPA_INDEX_I64 : SDPA_INDEX_I32;
  args.table_stride = problem.pages->entry_stride;
}

void set_score_args(const SdpaProblem& problem, SdpaArgs& args) {
  args.scale = problem.scale;
  args.softcap = problem.softcap;
  if (problem.mask.has_value()) {
    const MaskLayout& mask = *problem.mask;
    args.mask_kind = element_kind(mask.dtype);
    args.mask_offset = mask.offset;
    args.mask_stride = {problem.has_packed_queries() ? 0 : mask.batch_stride, mask.head_stride,
                        mask.row_stride, mask.key_stride};
  }
  if (problem.alibi_slopes.has_value()) {
    args.has_alibi = 1;
    args.alibi_offset = problem.alibi_slopes->offset;
    args.alibi_batch = problem.alibi_slopes->batch_stride;
    args.alibi_head = problem.alibi_slopes->head_stride;
  }
  if (problem.sinks.has_value()) {
    args.sinks_kind = element_kind(problem.sinks->dtype);
    args.sinks_offset = problem.sinks->offset;
    args.sinks_head = problem.sinks->head_stride;
  }
}

void bind_operand(const SdpaProblem& problem, PlanOperand operand, PlanStep& step) {
  const OperandInfo& info = operand_info(operand);
  step.bindings.push_back({info.buffer_index, operand});
  if (info.is_output) {
    step.writes.push_back(operand_range(problem, info));
  } else {
    step.reads.push_back(operand_range(problem, info));
  }
}

void bind_optional(const SdpaProblem& problem, PlanOperand operand, std::uint32_t constant,
                   PlanStep& step) {
  if (!operand_info(operand).is_used(problem)) return;
  bind_operand(problem, operand, step);
  step.constants.push_back({constant, true});
}

}  // namespace

const char* DTypeNames::of(DType dtype) const {
  if (dtype == DType::f16) return f16;
  if (dtype == DType::bf16) return bf16;
  return f32;
}

std::int64_t visible_keys(const SdpaProblem& problem, std::int64_t b) {
  return visible_band(problem, b).end;
}

SdpaArgs sdpa_args(const SdpaProblem& problem, std::uint32_t span_len) {
  SdpaArgs args{};
  args.q_stride = strides_of(problem, PlanOperand::q);
  args.k_stride = strides_of(problem, PlanOperand::k);
  args.v_stride = strides_of(problem, PlanOperand::v);
  args.out_stride = strides_of(problem, PlanOperand::out);
  args.q_offset = problem.q.offset;
  args.k_offset = problem.k.offset;
  args.v_offset = problem.v.offset;
  args.out_offset = problem.out.offset;
  args.sequence = sequence_of(problem, 0);
  args.window = window_of(problem);
  args.batch = static_cast<sdpa_u32>(problem.batch);
  args.n_heads = static_cast<sdpa_u32>(problem.n_heads);
  args.n_kv_heads = static_cast<sdpa_u32>(problem.n_kv_heads);
  args.seq_len = static_cast<sdpa_u32>(problem.seq_len);
  args.head_dim = static_cast<sdpa_u32>(problem.head_dim);
  args.value_dim = static_cast<sdpa_u32>(problem.value_dim);
  set_score_args(problem, args);
  set_place_args(problem, args);
  args.out_f32 = problem.out_f32 ? 1 : 0;
  args.span_len = span_len;
  args.n_spans = static_cast<sdpa_u32>((longest_kv_len(problem) + span_len - 1) / span_len);
  args.row_end = args.seq_len;
  args.head_end = args.n_heads;
  args.span_end = args.n_spans;
  return args;
}

void bind_sdpa_args(const SdpaProblem& problem, const SdpaArgs& args, PlanStep& step) {
  step.args.index = SDPA_BUFFER_ARGS;
  step.args.bytes.assign(reinterpret_cast<const std::byte*>(&args), sizeof(args));
  if (!problem.per_sequence()) return;
  step.sequences.index = SDPA_BUFFER_SEQUENCES;
  step.sequences.bytes =
      std::make_shared<const std::vector<std::byte>>(bytes_of(sequences_of(problem)));
  step.constants.push_back({SDPA_CONSTANT_SEQUENCES, true});
}

void bind_sdpa_outputs(const SdpaProblem& problem, PlanStep& step) {
  bind_operand(problem, PlanOperand::out, step);
  bind_optional(problem, PlanOperand::lse, SDPA_CONSTANT_LSE, step);
  bind_optional(problem, PlanOperand::sinks, SDPA_CONSTANT_SINKS, step);
  if (problem.out_f32 && problem.dtype != DType::f32) {
    step.constants.push_back({SDPA_CONSTANT_OUT_F32, true});
  }
}

void bind_sdpa_inputs(const SdpaProblem& problem, PlanStep& step) {
  for (const PlanOperand operand : {PlanOperand::q, PlanOperand::k, PlanOperand::v}) {
    bind_operand(problem, operand, step);
  }
  const bool is_boolean = problem.mask.has_value() && problem.mask->dtype == DType::u8;
  bind_optional(problem, PlanOperand::mask, is_boolean ? SDPA_CONSTANT_MASK : SDPA_CONSTANT_BIAS,
                step);
  bind_optional(problem, PlanOperand::alibi_slopes, SDPA_CONSTANT_ALIBI, step);
  bind_optional(problem, PlanOperand::block_table, SDPA_CONSTANT_PAGES, step);
  if (problem.softcap != 0) step.constants.push_back({SDPA_CONSTANT_SOFTCAP, true});
  if (has_band_begin(problem)) step.constants.push_back({SDPA_CONSTANT_WINDOW, true});
}

void bind_sdpa_operands(const SdpaProblem& problem, PlanStep& step) {
  bind_sdpa_inputs(problem, step);
  bind_sdpa_outputs(problem, step);
}

}  // namespace metal_sdpa
