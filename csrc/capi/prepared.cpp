// Schedules that are made once and run often, for C.
#include "metal_sdpa/prepared.h"

#include "capi/guard.h"
#include "capi/handles.h"

namespace metal_sdpa::capi {
namespace {

bool same_extents(const SdpaProblem& a, const SdpaProblem& b) {
  return a.batch == b.batch && a.n_heads == b.n_heads && a.n_kv_heads == b.n_kv_heads &&
         a.head_dim == b.head_dim && a.value_dim == b.value_dim;
}

bool same_rows(const SdpaProblem& a, const SdpaProblem& b) {
  return a.q_rows == b.q_rows && a.kv_rows == b.kv_rows && a.q_total == b.q_total &&
         a.kv_total == b.kv_total;
}

bool same_pages(const SdpaProblem& a, const SdpaProblem& b) {
  if (!a.pages.has_value() || !b.pages.has_value())
    return a.pages.has_value() == b.pages.has_value();
  return a.pages->page_len == b.pages->page_len && a.pages->n_pages == b.pages->n_pages &&
         a.pages->n_entries == b.pages->n_entries && a.pages->starts == b.pages->starts;
}

/// Rows that are packed have as many as the lengths say, which update() may shorten.
bool same_queries(const SdpaProblem& given, const SdpaProblem& prepared) {
  if (given.has_packed_queries()) return given.seq_len <= prepared.seq_len;
  return given.seq_len == prepared.seq_len;
}

/// A Visibility says nothing of these, so that other ones would be passed over in silence.
void require_same(const char* call, const SdpaProblem& given, const SdpaProblem& prepared) {
  const bool same = same_extents(given, prepared) && same_queries(given, prepared) &&
                    same_rows(given, prepared) && same_pages(given, prepared);
  if (same) return;
  fail_argument(call, ": problem: its extents, packed rows or pages are not those prepared");
}

}  // namespace
}  // namespace metal_sdpa::capi

using namespace metal_sdpa;
using namespace metal_sdpa::capi;

metal_sdpa_status metal_sdpa_prepare(const metal_sdpa_device* device,
                                     const metal_sdpa_problem* problem,
                                     const metal_sdpa_buffer* block_table,
                                     metal_sdpa_prepared** prepared) {
  constexpr const char* kCall = "prepare";
  return guarded([&] {
    clear_place(kCall, "prepared", prepared);
    const Device& on = device_of(kCall, device);
    const SdpaProblem given = read_problem(kCall, problem);
    const OptionalOperands used = optional_operands(given);
    refuse_unused(kCall, "block_table", block_table, used.block_table, "pages is NULL");
    *prepared = new metal_sdpa_prepared{PreparedSdpa(on, given, operand_of(block_table)), used};
  });
}

metal_sdpa_status metal_sdpa_prepared_run(const metal_sdpa_prepared* prepared,
                                          const metal_sdpa_operands* operands,
                                          const metal_sdpa_buffer* scratch) {
  constexpr const char* kCall = "prepared_run";
  return guarded([&] {
    const metal_sdpa_prepared& given = prepared_of(kCall, prepared);
    given.prepared.run(read_operands(kCall, operands, given.used), operand_of(scratch));
  });
}

metal_sdpa_status metal_sdpa_prepared_update(metal_sdpa_prepared* prepared,
                                             const metal_sdpa_problem* problem,
                                             const metal_sdpa_buffer* block_table) {
  constexpr const char* kCall = "prepared_update";
  return guarded([&] {
    const metal_sdpa_prepared& before = prepared_of(kCall, prepared);
    const SdpaProblem given = read_problem(kCall, problem);
    refuse_unused(kCall, "block_table", block_table, before.used.block_table, "pages is NULL");
    require_same(kCall, given, before.prepared.problem());
    prepared->prepared.update(given, operand_of(block_table));
  });
}

metal_sdpa_status metal_sdpa_prepared_describe(const metal_sdpa_prepared* prepared,
                                               metal_sdpa_prepared_info* info, size_t struct_size) {
  constexpr const char* kCall = "prepared_describe";
  return guarded([&] {
    metal_sdpa_prepared_info filled{};
    filled.scratch_bytes = prepared_of(kCall, prepared).prepared.scratch_bytes();
    fill_struct(kCall, "info", filled, info, struct_size);
  });
}

void metal_sdpa_prepared_release(metal_sdpa_prepared* prepared) { delete prepared; }
