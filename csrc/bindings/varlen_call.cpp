// From cu_seqlens and packed rows to a problem.
#include "varlen_call.h"

#include "qkv.h"

namespace metal_sdpa::python {
namespace {

/// Sets where the slots of each sequence are; `kv_len` and `kv_lengths` say how many are in use
/// where the call gave them.
void set_key_rows(const SdpaCall& call, const std::vector<std::int64_t>& cu_seqlens,
                  SdpaInputs& inputs) {
  SdpaProblem& problem = inputs.problem;
  const std::int64_t Tk = inputs.k.shape[2];
  require_rows({call.name, "cu_seqlens_k"}, cu_seqlens, "k", Tk);
  set_slots(
      call, "rows of its range", [&](std::size_t b) { return cu_seqlens[b + 1] - cu_seqlens[b]; },
      inputs);
  problem.kv_rows.assign(cu_seqlens.begin(), cu_seqlens.end() - 1);
  problem.kv_total = Tk;
}

}  // namespace

void read_varlen_inputs(const SdpaCall& call, SdpaInputs& inputs) {
  SdpaProblem& problem = inputs.problem;
  const LengthCounts counts = read_options(call, problem);
  const auto q_ends = read_cu_seqlens({call.name, "cu_seqlens_q"}, call.cu_seqlens_q);
  const auto k_ends = read_cu_seqlens({call.name, "cu_seqlens_k"}, call.cu_seqlens_k);
  import_qkv(call, inputs);
  refuse_traced_arrays(call, inputs);
  set_heads(call, inputs);
  require_extent({call.name, "v"}, "rows", inputs.v.shape[2], "k", inputs.k.shape[2]);
  require_extent({call.name, "cu_seqlens_k"}, "entries", static_cast<std::int64_t>(k_ends.size()),
                 "cu_seqlens_q", static_cast<std::int64_t>(q_ends.size()));
  check_counts(call.name, counts, static_cast<std::int64_t>(q_ends.size()) - 1);
  set_query_rows(call.name, q_ends, inputs.query_rows(), problem, inputs.tokens);
  set_key_rows(call, k_ends, inputs);
  finish_problem(call, {3, {1, problem.n_heads, inputs.query_rows(), problem.kv_capacity}, true},
                 inputs);
}

}  // namespace metal_sdpa::python
