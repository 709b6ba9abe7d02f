// Merges of states, for C.
#include "metal_sdpa/merge_states.h"

#include "capi/guard.h"
#include "capi/handles.h"
#include "capi/problem.h"

namespace metal_sdpa::capi {
namespace {

StatesLayout states_of(const metal_sdpa_states_layout& given) {
  return {given.offset, given.state_stride, given.batch_stride, given.head_stride,
          given.row_stride};
}

metal_sdpa_states_layout c_states(const StatesLayout& layout) {
  return {layout.offset, layout.state_stride, layout.batch_stride, layout.head_stride,
          layout.row_stride};
}

MergeProblem problem_of(const char* call, const metal_sdpa_merge_problem& given) {
  MergeProblem problem;
  problem.dtype = dtype_of(call, "dtype", given.dtype);
  problem.out_dtype = dtype_of(call, "out_dtype", given.out_dtype);
  problem.n_states = given.n_states;
  problem.batch = given.batch;
  problem.heads = given.heads;
  problem.rows = given.rows;
  problem.width = given.width;
  problem.outs = states_of(given.outs);
  problem.lses = states_of(given.lses);
  problem.out = layout_of(given.out);
  problem.lse = layout_of(given.lse);
  return problem;
}

}  // namespace

Given<MergeProblem, MergeOperands> read_merge(const char* call,
                                              const metal_sdpa_merge_problem* problem,
                                              const metal_sdpa_merge_operands* operands) {
  const metal_sdpa_merge_problem given = read_struct(call, "problem", problem);
  const metal_sdpa_merge_operands memory = read_struct(call, "operands", operands);
  return {problem_of(call, given),
          {operand_of(memory.outs), operand_of(memory.lses), operand_of(memory.out),
           operand_of(memory.lse)}};
}

}  // namespace metal_sdpa::capi

using namespace metal_sdpa;
using namespace metal_sdpa::capi;

metal_sdpa_status metal_sdpa_merge_problem_init(metal_sdpa_merge_problem* problem,
                                                size_t struct_size) {
  return guarded([&] { init_struct("merge_problem_init", "problem", problem, struct_size); });
}

metal_sdpa_status metal_sdpa_merge_problem_set_packed_layouts(metal_sdpa_merge_problem* problem) {
  constexpr const char* kCall = "merge_problem_set_packed_layouts";
  return guarded([&] {
    metal_sdpa_merge_problem given = read_struct(kCall, "problem", problem);
    MergeProblem packed = problem_of(kCall, given);
    packed.set_packed_layouts();
    given.outs = c_states(packed.outs);
    given.lses = c_states(packed.lses);
    given.out = c_layout(packed.out);
    given.lse = c_layout(packed.lse);
    write_back(given, problem);
  });
}

metal_sdpa_status metal_sdpa_merge_operands_init(metal_sdpa_merge_operands* operands,
                                                 size_t struct_size) {
  return guarded([&] { init_struct("merge_operands_init", "operands", operands, struct_size); });
}

metal_sdpa_status metal_sdpa_merge_states(const metal_sdpa_device* device,
                                          const metal_sdpa_merge_problem* problem,
                                          const metal_sdpa_merge_operands* operands) {
  return guarded([&] {
    const Device& on = device_of("merge_states", device);
    const auto given = read_merge("merge_states", problem, operands);
    merge_states(on, given.operands, given.problem);
  });
}
