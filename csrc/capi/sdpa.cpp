// Attention, for C.
#include "metal_sdpa/sdpa.h"

#include <cmath>
#include <limits>

#include "capi/guard.h"
#include "capi/handles.h"
#include "capi/packed.h"
#include "capi/problem.h"

namespace metal_sdpa::capi {
namespace {

MaskLayout mask_of(const char* call, const metal_sdpa_mask_layout& given) {
  return {dtype_of(call, "mask: dtype", given.dtype),
          given.offset,
          given.batch_stride,
          given.head_stride,
          given.row_stride,
          given.key_stride};
}

HeadLayout heads_of(const char* call, const char* name, const metal_sdpa_head_layout& given) {
  return {dtype_of(call, name, given.dtype), given.offset, given.batch_stride, given.head_stride};
}

void set_extents(const char* call, const metal_sdpa_problem& given, SdpaProblem& problem) {
  if (given.batch < 0 || given.batch > INT32_MAX) {
    fail_argument(call, ": batch: ", given.batch, ", takes 0 to ", INT32_MAX);
  }
  problem.batch = given.batch;
  problem.n_heads = given.n_heads;
  problem.n_kv_heads = given.n_kv_heads;
  problem.head_dim = given.head_dim;
  problem.value_dim = given.value_dim;
}

void set_visibility(const metal_sdpa_problem& given, SdpaProblem& problem) {
  const auto numbers = [&](const std::int64_t* list) {
    using Numbers = std::vector<std::int64_t>;
    return list == nullptr ? Numbers() : Numbers(list, list + problem.batch);
  };
  problem.causal = given.causal != 0;
  problem.window_left = given.window_left;
  problem.window_right = given.window_right;
  problem.kv_start = given.kv_start;
  if (given.q_start != METAL_SDPA_UNSET) problem.q_start = given.q_start;
  problem.kv_starts = numbers(given.kv_starts);
  problem.q_starts = numbers(given.q_starts);
  problem.key_offset = given.key_offset;
  problem.key_stride = given.key_stride;
}

void set_scores(const char* call, const metal_sdpa_problem& given, SdpaProblem& problem) {
  problem.scale = given.scale;
  problem.softcap = given.softcap;
  if (given.mask != nullptr) problem.mask = mask_of(call, *given.mask);
  if (given.alibi_slopes != nullptr) {
    problem.alibi_slopes = heads_of(call, "alibi_slopes: dtype", *given.alibi_slopes);
  }
  if (given.sinks != nullptr) problem.sinks = heads_of(call, "sinks: dtype", *given.sinks);
}

void set_pages(const char* call, const metal_sdpa_problem& given, SdpaProblem& problem) {
  if (given.pages == nullptr) return;
  const metal_sdpa_page_table table = read_struct(call, "pages", given.pages);
  PageTable& pages = problem.pages.emplace();
  pages.dtype = dtype_of(call, "pages: dtype", table.dtype);
  pages.check_entries = table.check_entries != 0;
  pages.page_len = table.page_len;
  pages.n_pages = table.n_pages;
  pages.n_entries = table.n_entries;
  pages.offset = table.offset;
  pages.sequence_stride = table.sequence_stride;
  pages.entry_stride = table.entry_stride;
  if (table.starts != nullptr) pages.starts.assign(table.starts, table.starts + problem.batch);
}

SdpaProblem sdpa_problem(const char* call, const metal_sdpa_problem& given) {
  SdpaProblem problem;
  problem.dtype = dtype_of(call, "dtype", given.dtype);
  problem.out_f32 = given.out_f32 != 0;
  problem.return_lse = given.return_lse != 0;
  if (given.kernel != nullptr) problem.kernel = given.kernel;
  set_extents(call, given, problem);
  set_visibility(given, problem);
  set_scores(call, given, problem);
  set_pages(call, given, problem);
  set_query_rows(call, given, problem);
  set_key_rows(call, given, problem);
  problem.q = layout_of(given.q);
  problem.k = layout_of(given.k);
  problem.v = layout_of(given.v);
  problem.out = layout_of(given.out);
  return problem;
}

}  // namespace

void set_defaults(metal_sdpa_problem& problem) {
  problem.batch = 1;
  problem.seq_len = problem.kv_capacity = METAL_SDPA_UNSET;
  problem.scale = std::numeric_limits<float>::quiet_NaN();  // refused unless it is set
  problem.window_left = problem.window_right = METAL_SDPA_UNLIMITED;
  problem.kv_len = problem.q_start = problem.query_len = METAL_SDPA_UNSET;
  problem.key_stride = 1;
  problem.q_total = problem.kv_total = METAL_SDPA_UNSET;
}

void set_defaults(metal_sdpa_page_table& table) {
  table.dtype = METAL_SDPA_I32;
  table.check_entries = 1;
  table.entry_stride = 1;
}

SdpaProblem read_problem(const char* call, const metal_sdpa_problem* problem) {
  return sdpa_problem(call, read_struct(call, "problem", problem));
}

void refuse_unused(const char* call, const char* name, const metal_sdpa_buffer* buffer,
                   bool is_used, const char* field) {
  if (buffer == nullptr || is_used) return;
  fail_argument(call, ": ", name, ": is given, but the problem's ", field);
}

OptionalOperands optional_operands(const SdpaProblem& problem) {
  return {problem.return_lse, problem.mask.has_value(), problem.sinks.has_value(),
          problem.alibi_slopes.has_value(), problem.pages.has_value()};
}

SdpaOperands read_operands(const char* call, const metal_sdpa_operands* operands,
                           const OptionalOperands& used) {
  const metal_sdpa_operands given = read_struct(call, "operands", operands);
  refuse_unused(call, "lse", given.lse, used.lse, "return_lse is 0");
  refuse_unused(call, "mask", given.mask, used.mask, "mask is NULL");
  refuse_unused(call, "sinks", given.sinks, used.sinks, "sinks is NULL");
  refuse_unused(call, "alibi_slopes", given.alibi_slopes, used.alibi_slopes,
                "alibi_slopes is NULL");
  refuse_unused(call, "block_table", given.block_table, used.block_table, "pages is NULL");
  return {operand_of(given.q),          operand_of(given.k),
          operand_of(given.v),          operand_of(given.out),
          operand_of(given.lse),        operand_of(given.mask),
          operand_of(given.sinks),      operand_of(given.alibi_slopes),
          operand_of(given.block_table)};
}

Given<SdpaProblem, SdpaOperands> read_sdpa(const char* call, const metal_sdpa_problem* problem,
                                           const metal_sdpa_operands* operands) {
  SdpaProblem read = read_problem(call, problem);
  SdpaOperands memory = read_operands(call, operands, optional_operands(read));
  return {std::move(read), std::move(memory)};
}

}  // namespace metal_sdpa::capi

using namespace metal_sdpa;
using namespace metal_sdpa::capi;

metal_sdpa_status metal_sdpa_page_table_init(metal_sdpa_page_table* table, size_t struct_size) {
  return guarded([&] { init_struct("page_table_init", "table", table, struct_size); });
}

metal_sdpa_status metal_sdpa_problem_init(metal_sdpa_problem* problem, size_t struct_size) {
  return guarded([&] { init_struct("problem_init", "problem", problem, struct_size); });
}

metal_sdpa_status metal_sdpa_problem_set_packed_layouts(metal_sdpa_problem* problem) {
  constexpr const char* kCall = "problem_set_packed_layouts";
  return guarded([&] {
    metal_sdpa_problem given = read_struct(kCall, "problem", problem);
    SdpaProblem packed = sdpa_problem(kCall, given);
    packed.set_packed_layouts();
    given.q = c_layout(packed.q);
    given.k = c_layout(packed.k);
    given.v = c_layout(packed.v);
    given.out = c_layout(packed.out);
    write_back(given, problem);
  });
}

metal_sdpa_status metal_sdpa_operands_init(metal_sdpa_operands* operands, size_t struct_size) {
  return guarded([&] { init_struct("operands_init", "operands", operands, struct_size); });
}

metal_sdpa_status metal_sdpa_sdpa(const metal_sdpa_device* device,
                                  const metal_sdpa_problem* problem,
                                  const metal_sdpa_operands* operands) {
  return guarded([&] {
    const Device& on = device_of("sdpa", device);
    const auto given = read_sdpa("sdpa", problem, operands);
    sdpa(on, given.operands, given.problem);
  });
}
