// From pages and a block table to a problem.
#include "paged_call.h"

#include <algorithm>
#include <utility>

#include "index_array.h"

namespace metal_sdpa::python {
namespace {

constexpr const char* kTableTypes = "an array [B, max_blocks], or a tuple (indptr, indices)";

/// What a call says beside arrays of numbers.
struct PagedOptions {
  LengthCounts counts;
  bool heads_first = false;
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

PagedOptions read_paged_options(const SdpaCall& call, SdpaProblem& problem) {
  PagedOptions options;
  options.counts = read_options(call, problem);
  if (call.layout != nullptr) options.heads_first = read_layout({call.name, "layout"}, call.layout);
  if (call.check_indices != nullptr) {
    options.check_indices = to_bool({call.name, "check_indices"}, call.check_indices);
  }
  if (call.cu_seqlens_q != nullptr) {
    options.cu_seqlens = read_cu_seqlens({call.name, "cu_seqlens_q"}, call.cu_seqlens_q);
  }
  read_table_parts(call, options);
  return options;
}

void import_queries(const SdpaCall& call, bool packed, Array& q) {
  const Argument argument{call.name, "q"};
  import_tensor(argument, call.q, packed ? "[Tq, Hq, D]" : "[B, Hq, L, D]", packed ? 3 : 4, q);
  require_heads(argument, q, 1, "head_dim");
  if (packed) show_heads_first(q);
}

/// K or V, described with heads before slots.
void import_pages(Argument argument, PyObject* object, bool heads_first, const char* width,
                  Array& array) {
  const char* extents = heads_first ? "[n_pages, Hkv, page, D]" : "[n_pages, page, Hkv, D]";
  import_tensor(argument, object, extents, 4, array);
  require_heads(argument, array, heads_first ? 1 : 2, width);
  if (array.shape[heads_first ? 2 : 1] == 0) {
    fail_argument(argument.call, ": ", argument.name, ": shape ", array.shape_list(),
                  " has pages of 0 slots");
  }
  if (heads_first) return;
  std::swap(array.shape[1], array.shape[2]);
  std::swap(array.strides[1], array.strides[2]);
}

/// The page numbers, described with four axes.
void import_table(const SdpaCall& call, const PagedOptions& options, SdpaInputs& inputs) {
  const Argument argument{call.name, "block_table"};
  Array& table = inputs.block_table.emplace();
  inputs.block_table_object = options.table;
  import_indices(argument, options.table, table);
  const int ndim = options.indptr.has_value() ? 1 : 2;
  if (table.ndim != ndim) {
    fail_argument(argument.call, ": ", argument.name, ": shape ", table.shape_list(), " has ",
                  table.ndim, " dimensions, takes ",
                  ndim == 1 ? "1 of indices" : "[B, max_blocks]");
  }
  table.shape[3] = table.shape[ndim - 1];
  table.strides[3] = table.strides[ndim - 1];
  if (ndim == 1) table.shape[0] = 1;
  if (ndim == 1) table.strides[0] = 0;
  for (int axis = 1; axis < 3; ++axis) {
    table.shape[axis] = 1;
    table.strides[axis] = 0;
  }
  table.ndim = 4;
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

void set_slots(const SdpaCall& call, const PagedOptions& options, SdpaInputs& inputs) {
  SdpaProblem& problem = inputs.problem;
  const PageTable& pages = *problem.pages;
  const auto slots_of = [&](std::size_t b) {
    std::int64_t entries = pages.n_entries;
    if (options.indptr.has_value()) entries = (*options.indptr)[b + 1] - (*options.indptr)[b];
    // No sequence has as many slots as 64 bits count.
    std::int64_t slots = 0;
    return __builtin_mul_overflow(entries, pages.page_len, &slots) ? INT64_MAX : slots;
  };
  std::vector<std::int64_t>& lengths = problem.kv_lengths;
  if (lengths.empty()) lengths.assign(static_cast<std::size_t>(problem.batch), problem.kv_len);
  check_lengths({call.name, "kv_lengths"}, lengths, "slots of its pages", slots_of);
  problem.kv_capacity = lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
  problem.kv_len = problem.kv_capacity;
}

}  // namespace

void read_paged_inputs(const SdpaCall& call, SdpaInputs& inputs) {
  SdpaProblem& problem = inputs.problem;
  const PagedOptions options = read_paged_options(call, problem);
  const bool packed = options.cu_seqlens.has_value();
  import_queries(call, packed, inputs.q);
  import_pages({call.name, "k_pages"}, call.k, options.heads_first, "head_dim", inputs.k);
  import_pages({call.name, "v_pages"}, call.v, options.heads_first, "value_dim", inputs.v);
  import_table(call, options, inputs);
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
  set_slots(call, options, inputs);
  const MaskExtents mask{
      packed ? 3 : 4,
      {packed ? 1 : problem.batch, problem.n_heads, inputs.query_rows(), problem.kv_capacity},
      true};
  finish_problem(call, mask, inputs);
}

}  // namespace metal_sdpa::python
