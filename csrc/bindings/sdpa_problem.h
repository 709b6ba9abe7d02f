// From the arrays of a call to an SdpaProblem.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "array.h"
#include "metal_sdpa/sdpa.h"
#include "score_arrays.h"
#include "sdpa_call.h"
#include "token_rows.h"
#include "visibility.h"

namespace metal_sdpa::python {

/// How a paged call gives its arrays; the other calls know one way each.
struct QkvForm {
  bool packed_queries = false;  ///< q is [Tq, Hq, D]
  bool heads_first = false;     ///< pages are HND, else NHD
  bool listed_pages = false;    ///< the table is (indptr, indices)
};

/// The arrays of a call, described, and the problem that they pose; `problem.out` is packed. q, k
/// and v have four axes: [B, H, rows, D], [1, H, all rows, D] or [n_pages, Hkv, page, D].
struct SdpaInputs {
  Array q, k, v;
  std::optional<ScoreArrays> score_arrays;  ///< where the call gives any
  std::optional<Array> block_table;         ///< [B, 1, 1, entries], or [1, 1, 1, entries] of all
  PyObject* block_table_object = nullptr;   ///< whose memory that is
  QkvForm form;
  MaskExtents mask;                 ///< what a mask is broadcast to
  std::vector<std::int64_t> slots;  ///< [B] that each sequence has; dense: empty, all have S
  TokenRows tokens;
  SdpaProblem problem;

  /// Rows of q, out and lse that the arrays have a head: L, or Tq of packed queries.
  std::int64_t query_rows() const { return q.shape[2]; }
};

/// Everything but memory of any of the calls: shapes, dtypes, options. Errors name the argument.
void read_sdpa_inputs(const SdpaCall& call, SdpaInputs& inputs);

// --- its steps, in this order --------------------------------------------------------------------

/// Whatever may run code of the caller (__float__, __index__, tolist): before any array is
/// described, since such code could resize or free one, which nothing holds then.
LengthCounts read_options(const SdpaCall& call, SdpaProblem& problem);

/// Unsupported for arrays that a framework traces.
void refuse_traced_arrays(const SdpaCall& call, const SdpaInputs& inputs);

/// InvalidArgument where an array without elements lacks heads or what they are made of.
void require_heads(Argument argument, const Array& array, int head_axis, const char* width);

/// InvalidArgument where a dimension that two arrays share differs.
void require_extent(Argument argument, const char* extent, std::int64_t got, const char* other,
                    std::int64_t wanted);

/// Sets dtype, heads and their widths, which q, k and v must agree on.
void set_heads(const SdpaCall& call, SdpaInputs& inputs);

/// What follows from the problem's shape: scale, mask, sinks, slopes, layouts.
void finish_problem(const SdpaCall& call, const MaskExtents& mask, SdpaInputs& inputs);

/// Fills `slots` and sets kv_lengths, those that the call gave or all that there are; each is 0 to
/// the sequence's slots, which are "its `what`".
template <typename SlotsOf>
void set_slots(const SdpaCall& call, const char* what, const SlotsOf& slots_of,
               SdpaInputs& inputs) {
  SdpaProblem& problem = inputs.problem;
  std::vector<std::int64_t>& lengths = problem.kv_lengths;
  const bool takes_all = call.kv_lengths == nullptr;
  const bool takes_one = !takes_all && lengths.empty();
  for (std::size_t b = 0; b < static_cast<std::size_t>(problem.batch); ++b) {
    inputs.slots.push_back(slots_of(b));
    if (takes_all) lengths.push_back(inputs.slots.back());
    if (takes_one) lengths.push_back(problem.kv_len);
  }
  check_lengths({call.name, "kv_lengths"}, lengths, what,
                [&](std::size_t b) { return inputs.slots[b]; });
  problem.kv_capacity = lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
  problem.kv_len = problem.kv_capacity;
}

// --- arrays --------------------------------------------------------------------------------------

/// Calls visit(argument, object, array, its Buffer in SdpaOperands, its layout in `problem`) for
/// each input array of the call.
template <typename Visit>
void for_each_input(const SdpaCall& call, const SdpaInputs& inputs, SdpaProblem& problem,
                    const Visit& visit) {
  const auto name = [&](const char* text) { return Argument{call.name, text}; };
  visit(name("q"), call.q, inputs.q, &SdpaOperands::q, problem.q);
  visit(name(call.k_name()), call.k, inputs.k, &SdpaOperands::k, problem.k);
  visit(name(call.v_name()), call.v, inputs.v, &SdpaOperands::v, problem.v);
  if (inputs.block_table.has_value()) {
    visit(name("block_table"), inputs.block_table_object, *inputs.block_table,
          &SdpaOperands::block_table, *problem.pages);
  }
  if (!inputs.score_arrays.has_value()) return;
  const ScoreArrays& arrays = *inputs.score_arrays;
  if (problem.mask) {
    visit(name("mask"), call.mask, arrays.mask, &SdpaOperands::mask, *problem.mask);
  }
  if (problem.sinks) {
    visit(name("sinks"), call.sinks, arrays.sinks, &SdpaOperands::sinks, *problem.sinks);
  }
  if (problem.alibi_slopes) {
    visit(name("alibi_slopes"), call.alibi_slopes, arrays.alibi_slopes, &SdpaOperands::alibi_slopes,
          *problem.alibi_slopes);
  }
}

/// One array of so many dimensions: the argument's name, its extents in words ("[B, Hq, L, D]").
void import_tensor(Argument argument, PyObject* object, const char* extents, int ndim,
                   Array& array);

/// Strides of a tensor whose last dimension is contiguous; InvalidArgument for another.
TensorLayout tensor_layout(Argument argument, const Array& array);

/// Distance in elements from the first one that the array touches to its element 0.
std::int64_t elements_before(Argument argument, const Array& array);

/// The bytes that an array touches, wrapped for the device. `offset` becomes the
/// distance in elements from their start to the array's first element. An empty Buffer where the
/// array has no element.
Buffer wrap_elements(const Device& device, Argument argument, const Array& array,
                     std::int64_t& offset);

}  // namespace metal_sdpa::python
