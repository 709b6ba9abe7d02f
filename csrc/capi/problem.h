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

SdpaProblem sdpa_problem(const char* call, const metal_sdpa_problem& given);

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
