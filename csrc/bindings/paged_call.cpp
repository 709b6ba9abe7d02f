// From pages and a block table to a problem.
#include "paged_call.h"

#include "index_array.h"
#include "qkv.h"

namespace metal_sdpa::python {
namespace {

constexpr const char* kTableTypes = "an array [B, max_blocks], or a tuple (indptr, indices)";

/// What a call says beside arrays of numbers.
struct PagedOptions {
  LengthCounts counts;
  bool check_indices = true;
  std::optional<std::vector<std::int64_t>> cu_seqlens;
  std::optional<std::vector<std::int64_t>> indptr;
  PyObject* table = nullptr;  ///< the array of page numbers
};

bool read_layout(Argument argument, nb::handle value) {
  const std::string layout = to_text(argument, value);
  if (layout == "HND") return true;
  if (layout == "NHD") return false;
  fail_argument(argument.call, ": ", argument.name, ": \"", layout, "\", takes \"NHD\" or \"HND\"");
}

void read_table_parts(const SdpaCall& call, PagedOptions& options) {
  const Argument argument{call.name, "block_table"};
  options.table = call.block_table;
  if (!PyTuple_Check(call.block_table)) return;
  if (PyTuple_Size(call.block_table) != 2) fail_type(argument, call.block_table, kTableTypes);
  options.indptr =
      read_cu_seqlens({call.name, "block_table: indptr"}, PyTuple_GetItem(call.block_table, 0));
  options.table = PyTuple_GetItem(call.block_table, 1);
}

PagedOptions read_paged_options(const SdpaCall& call, SdpaInputs& inputs) {
  PagedOptions options;
  options.counts = read_options(call, inputs.problem);
  if (call.layout != nullptr)
    inputs.form.heads_first = read_layout({call.name, "layout"}, call.layout);
  if (call.check_indices != nullptr) {
    options.check_indices = to_bool({call.name, "check_indices"}, call.check_indices);
  }
  if (call.cu_seqlens_q != nullptr) {
    options.cu_seqlens = read_cu_seqlens({call.name, "cu_seqlens_q"}, call.cu_seqlens_q);
  }
  inputs.form.packed_queries = options.cu_seqlens.has_value();
  read_table_parts(call, options);
  inputs.form.listed_pages = options.indptr.has_value();
  return options;
}

void check_pages(const SdpaCall& call, const SdpaInputs& inputs) {
  const Argument argument{call.name, call.v_name()};
  require_extent(argument, "n_pages", inputs.v.shape[0], call.k_name(), inputs.k.shape[0]);
  require_extent(argument, "page size", inputs.v.shape[2], call.k_name(), inputs.k.shape[2]);
}

void set_pages(const SdpaCall& call, const PagedOptions& options, SdpaInputs& inputs) {
  SdpaProblem& problem = inputs.problem;
  const Array& table = *inputs.block_table;
  const Argument argument{call.name, "block_table"};
  PageTable& pages = problem.pages.emplace();
  pages.dtype = table.dtype;
  pages.n_pages = inputs.k.shape[0];
  pages.page_len = inputs.k.shape[2];
  pages.n_entries = table.shape[3];
  pages.check_entries = options.check_indices;
  if (!table.empty) {
    pages.sequence_stride = table.strides[0];
    pages.entry_stride = table.strides[3];
  }
  if (!options.indptr.has_value()) {
    require_extent(argument, "sequences", table.shape[0], "the batch", problem.batch);
    return;
  }
  const std::vector<std::int64_t>& indptr = *options.indptr;
  require_extent(argument, "sequences", static_cast<std::int64_t>(indptr.size()) - 1, "the batch",
                 problem.batch);
  require_rows({call.name, "block_table: indptr"}, indptr, "indices", table.shape[3]);
  pages.starts.assign(indptr.begin(), indptr.end() - 1);
}

void set_page_slots(const SdpaCall& call, const PagedOptions& options, SdpaInputs& inputs) {
  const PageTable& pages = *inputs.problem.pages;
  const auto slots_of = [&](std::size_t b) {
    std::int64_t entries = pages.n_entries;
    if (options.indptr.has_value()) entries = (*options.indptr)[b + 1] - (*options.indptr)[b];
    // No sequence has as many slots as 64 bits count.
    std::int64_t slots = 0;
    return __builtin_mul_overflow(entries, pages.page_len, &slots) ? INT64_MAX : slots;
  };
  set_slots(call, "slots of its pages", slots_of, inputs);
}

}  // namespace

void import_table(Argument argument, PyObject* object, Lifetime lifetime, bool is_list,
                  Array& table) {
  import_indices(argument, object, table, lifetime);
  const int ndim = is_list ? 1 : 2;
  if (table.ndim != ndim) {
    fail_argument(argument.call, ": ", argument.name, ": shape ", table.shape_list(), " has ",
                  table.ndim, " dimensions, takes ", is_list ? "1 of indices" : "[B, max_blocks]");
  }
  table.shape[3] = table.shape[ndim - 1];
  table.strides[3] = table.strides[ndim - 1];
  if (is_list) table.shape[0] = 1;
  if (is_list) table.strides[0] = 0;
  for (int axis = 1; axis < 3; ++axis) {
    table.shape[axis] = 1;
    table.strides[axis] = 0;
  }
  table.ndim = 4;
}

void read_paged_inputs(const SdpaCall& call, SdpaInputs& inputs) {
  SdpaProblem& problem = inputs.problem;
  const PagedOptions options = read_paged_options(call, inputs);
  const bool packed = inputs.form.packed_queries;
  import_qkv(call, inputs);
  inputs.block_table_object = options.table;
  import_table({call.name, "block_table"}, options.table, Lifetime::borrowed,
               inputs.form.listed_pages, inputs.block_table.emplace());
  refuse_traced_arrays(call, inputs);
  set_heads(call, inputs);
  check_pages(call, inputs);
  problem.batch =
      packed ? static_cast<std::int64_t>(options.cu_seqlens->size()) - 1 : inputs.q.shape[0];
  problem.seq_len = inputs.query_rows();
  check_counts(call.name, options.counts, problem.batch);
  if (packed) {
    set_query_rows(call.name, *options.cu_seqlens, inputs.query_rows(), problem, inputs.tokens);
  }
  set_pages(call, options, inputs);
  set_page_slots(call, options, inputs);
  const MaskExtents mask{
      packed ? 3 : 4,
      {packed ? 1 : problem.batch, problem.n_heads, inputs.query_rows(), problem.kv_capacity},
      true};
  finish_problem(call, mask, inputs);
}

}  // namespace metal_sdpa::python
