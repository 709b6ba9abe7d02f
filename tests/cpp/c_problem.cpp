// From problems of C++ to those of C, field by field.
#include "c_problem.h"

#include "capi/problem.h"
#include "support.h"

namespace metal_sdpa::test {
namespace {

const std::int64_t* list_of(const std::vector<std::int64_t>& numbers) {
  return numbers.empty() ? nullptr : numbers.data();
}

metal_sdpa_head_layout heads_of(const HeadLayout& heads) {
  return {heads.offset, heads.batch_stride, heads.head_stride,
          static_cast<metal_sdpa_dtype>(heads.dtype)};
}

void set_extents(const SdpaProblem& p, metal_sdpa_problem& c) {
  c.dtype = static_cast<metal_sdpa_dtype>(p.dtype);
  c.out_f32 = p.out_f32;
  c.return_lse = p.return_lse;
  c.causal = p.causal;
  c.batch = p.batch;
  c.n_heads = p.n_heads;
  c.n_kv_heads = p.n_kv_heads;
  c.seq_len = p.seq_len;
  c.kv_capacity = p.kv_capacity;
  c.head_dim = p.head_dim;
  c.value_dim = p.value_dim;
  c.q = capi::c_layout(p.q);
  c.k = capi::c_layout(p.k);
  c.v = capi::c_layout(p.v);
  c.out = capi::c_layout(p.out);
  c.scale = p.scale;
  c.softcap = p.softcap;
  if (!p.kernel.empty()) c.kernel = p.kernel.c_str();
}

void set_visibility(const SdpaProblem& p, metal_sdpa_problem& c) {
  c.window_left = p.window_left;
  c.window_right = p.window_right;
  c.kv_len = p.kv_len;
  c.kv_start = p.kv_start;
  if (p.q_start.has_value()) c.q_start = *p.q_start;
  if (p.query_len.has_value()) c.query_len = *p.query_len;
  c.kv_lengths = list_of(p.kv_lengths);
  c.kv_starts = list_of(p.kv_starts);
  c.q_starts = list_of(p.q_starts);
  c.query_lengths = list_of(p.query_lengths);
  c.key_offset = p.key_offset;
  c.key_stride = p.key_stride;
}

void set_packed_rows(const SdpaProblem& p, metal_sdpa_problem& c) {
  c.q_rows = list_of(p.q_rows);
  c.kv_rows = list_of(p.kv_rows);
  if (p.has_packed_queries()) c.q_total = p.q_total;
  if (p.has_packed_keys()) c.kv_total = p.kv_total;
}

}  // namespace

DeviceHandle open_device(const char* kind) {
  metal_sdpa_device* device = nullptr;
  REQUIRE(metal_sdpa_device_open(kind, nullptr, &device) == METAL_SDPA_OK);
  return DeviceHandle(device);
}

BufferHandle handle_of(const Buffer& buffer) {
  return buffer.valid() ? BufferHandle(new metal_sdpa_buffer{buffer}) : nullptr;
}

CProblem::CProblem(const SdpaProblem& problem) : from(problem) {
  REQUIRE(metal_sdpa_problem_init(&c, sizeof c) == METAL_SDPA_OK);
  set_extents(from, c);
  set_visibility(from, c);
  set_packed_rows(from, c);
  if (from.mask.has_value()) {
    const MaskLayout& m = *from.mask;
    mask = {m.offset,     m.batch_stride, m.head_stride,
            m.row_stride, m.key_stride,   static_cast<metal_sdpa_dtype>(m.dtype)};
    c.mask = &mask;
  }
  if (from.alibi_slopes.has_value()) {
    alibi_slopes = heads_of(*from.alibi_slopes);
    c.alibi_slopes = &alibi_slopes;
  }
  if (from.sinks.has_value()) {
    sinks = heads_of(*from.sinks);
    c.sinks = &sinks;
  }
  if (!from.pages.has_value()) return;
  const PageTable& table = *from.pages;
  REQUIRE(metal_sdpa_page_table_init(&pages, sizeof pages) == METAL_SDPA_OK);
  pages.dtype = static_cast<metal_sdpa_dtype>(table.dtype);
  pages.check_entries = table.check_entries;
  pages.page_len = table.page_len;
  pages.n_pages = table.n_pages;
  pages.n_entries = table.n_entries;
  pages.offset = table.offset;
  pages.sequence_stride = table.sequence_stride;
  pages.entry_stride = table.entry_stride;
  pages.starts = list_of(table.starts);
  c.pages = &pages;
}

COperands::COperands(const SdpaOperands& operands, const SdpaProblem& problem) {
  REQUIRE(metal_sdpa_operands_init(&c, sizeof c) == METAL_SDPA_OK);
  const auto keep = [this](const Buffer& buffer) {
    return handles.emplace_back(handle_of(buffer)).get();
  };
  c.q = keep(operands.q);
  c.k = keep(operands.k);
  c.v = keep(operands.v);
  c.out = keep(operands.out);
  if (problem.return_lse) c.lse = keep(operands.lse);
  if (problem.mask.has_value()) c.mask = keep(operands.mask);
  if (problem.sinks.has_value()) c.sinks = keep(operands.sinks);
  if (problem.alibi_slopes.has_value()) c.alibi_slopes = keep(operands.alibi_slopes);
  if (problem.pages.has_value()) c.block_table = keep(operands.block_table);
}

}  // namespace metal_sdpa::test
