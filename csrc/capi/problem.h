// From the C structs to the core's problems. Errors begin with `call`.
#pragma once

#include "metal_sdpa/c.h"
#include "metal_sdpa/merge_states.h"
#include "metal_sdpa/sdpa.h"
#include "metal_sdpa/write_kv.h"

namespace metal_sdpa::capi {

/// The problem and its memory, as the core takes them.
template <typename Problem, typename Operands>
struct Given {
  Problem problem;
  Operands operands;
};

/// Operands that a problem may do without.
struct OptionalOperands {
  bool lse = false;
  bool mask = false;
  bool sinks = false;
  bool alibi_slopes = false;
  bool block_table = false;
};

OptionalOperands optional_operands(const SdpaProblem& problem);

SdpaProblem read_problem(const char* call, const metal_sdpa_problem* problem);

/// Memory that the problem has no use for was meant to be used: InvalidArgument, with the field
/// that would use it.
void refuse_unused(const char* call, const char* name, const metal_sdpa_buffer* buffer,
                   bool is_used, const char* field);

/// InvalidArgument where memory is given that the problem does not use.
SdpaOperands read_operands(const char* call, const metal_sdpa_operands* operands,
                           const OptionalOperands& used);

Given<SdpaProblem, SdpaOperands> read_sdpa(const char* call, const metal_sdpa_problem* problem,
                                           const metal_sdpa_operands* operands);
Given<WriteKvProblem, WriteKvOperands> read_write_kv(const char* call,
                                                     const metal_sdpa_write_kv_problem* problem,
                                                     const metal_sdpa_write_kv_operands* operands);
Given<MergeProblem, MergeOperands> read_merge(const char* call,
                                              const metal_sdpa_merge_problem* problem,
                                              const metal_sdpa_merge_operands* operands);

inline TensorLayout layout_of(const metal_sdpa_tensor_layout& given) {
  return {given.offset, given.batch_stride, given.head_stride, given.row_stride};
}

inline metal_sdpa_tensor_layout c_layout(const TensorLayout& layout) {
  return {layout.offset, layout.batch_stride, layout.head_stride, layout.row_stride};
}

}  // namespace metal_sdpa::capi
