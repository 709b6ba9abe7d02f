// Writes into caches, for C.
#include "metal_sdpa/write_kv.h"

#include "capi/guard.h"
#include "capi/handles.h"
#include "capi/problem.h"

namespace metal_sdpa::capi {
namespace {

TokenLayout tokens_of(const metal_sdpa_token_layout& given) {
  return {given.offset, given.token_stride, given.head_stride};
}

PageLayout pages_of(const metal_sdpa_page_layout& given) {
  return {given.offset, given.page_stride, given.slot_stride, given.head_stride};
}

metal_sdpa_token_layout c_tokens(const TokenLayout& layout) {
  return {layout.offset, layout.token_stride, layout.head_stride};
}

metal_sdpa_page_layout c_pages(const PageLayout& layout) {
  return {layout.offset, layout.page_stride, layout.slot_stride, layout.head_stride};
}

WriteKvProblem problem_of(const char* call, const metal_sdpa_write_kv_problem& given) {
  WriteKvProblem problem;
  problem.dtype = dtype_of(call, "dtype", given.dtype);
  problem.check_slots = given.check_slots != 0;
  problem.tokens = given.tokens;
  problem.heads = given.heads;
  problem.head_dim = given.head_dim;
  problem.value_dim = given.value_dim;
  problem.n_pages = given.n_pages;
  problem.page_size = given.page_size;
  problem.k_new = tokens_of(given.k_new);
  problem.v_new = tokens_of(given.v_new);
  problem.k_cache = pages_of(given.k_cache);
  problem.v_cache = pages_of(given.v_cache);
  return problem;
}

}  // namespace

void set_defaults(metal_sdpa_write_kv_problem& problem) {
  problem.check_slots = 1;
  problem.n_pages = 1;
}

Given<WriteKvProblem, WriteKvOperands> read_write_kv(const char* call,
                                                     const metal_sdpa_write_kv_problem* problem,
                                                     const metal_sdpa_write_kv_operands* operands) {
  const metal_sdpa_write_kv_problem given = read_struct(call, "problem", problem);
  const metal_sdpa_write_kv_operands memory = read_struct(call, "operands", operands);
  return {problem_of(call, given),
          {operand_of(memory.k_new), operand_of(memory.v_new), operand_of(memory.k_cache),
           operand_of(memory.v_cache), operand_of(memory.slots)}};
}

}  // namespace metal_sdpa::capi

using namespace metal_sdpa;
using namespace metal_sdpa::capi;

metal_sdpa_status metal_sdpa_write_kv_problem_init(metal_sdpa_write_kv_problem* problem,
                                                   size_t struct_size) {
  return guarded([&] { init_struct("write_kv_problem_init", "problem", problem, struct_size); });
}

metal_sdpa_status metal_sdpa_write_kv_problem_set_packed_layouts(
    metal_sdpa_write_kv_problem* problem) {
  constexpr const char* kCall = "write_kv_problem_set_packed_layouts";
  return guarded([&] {
    metal_sdpa_write_kv_problem given = read_struct(kCall, "problem", problem);
    WriteKvProblem packed = problem_of(kCall, given);
    packed.set_packed_layouts();
    given.k_new = c_tokens(packed.k_new);
    given.v_new = c_tokens(packed.v_new);
    given.k_cache = c_pages(packed.k_cache);
    given.v_cache = c_pages(packed.v_cache);
    write_back(given, problem);
  });
}

metal_sdpa_status metal_sdpa_write_kv_operands_init(metal_sdpa_write_kv_operands* operands,
                                                    size_t struct_size) {
  return guarded([&] { init_struct("write_kv_operands_init", "operands", operands, struct_size); });
}

metal_sdpa_status metal_sdpa_write_kv(const metal_sdpa_device* device,
                                      const metal_sdpa_write_kv_problem* problem,
                                      const metal_sdpa_write_kv_operands* operands) {
  return guarded([&] {
    const Device& on = device_of("write_kv", device);
    const auto given = read_write_kv("write_kv", problem, operands);
    write_kv(on, given.operands, given.problem);
  });
}
