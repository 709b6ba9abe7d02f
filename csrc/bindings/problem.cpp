// SdpaProblem and SdpaOperands: attention with layouts, lengths and every feature, for encode_sdpa.
#include "bindings.h"
#include "fields.h"
#include "metal_sdpa/sdpa.h"

namespace metal_sdpa::python {
namespace {

constexpr const char* kProblem = "SdpaProblem";

// --- layouts ------------------------------------------------------------------------------------

const Fields<TensorLayout>& tensor_fields() {
  using L = TensorLayout;
  static const auto* const fields = new Fields<L>{
      field<L, &L::offset>("offset", "int", "0", "Of element [0][0][0][0]."),
      field<L, &L::batch_stride>("batch_stride", "int", "0", "Elements from b to b + 1."),
      field<L, &L::head_stride>("head_stride", "int", "0", "Elements from head to head."),
      field<L, &L::row_stride>("row_stride", "int", "0", "Elements from row to row."),
  };
  return *fields;
}

const Fields<MaskLayout>& mask_fields() {
  using L = MaskLayout;
  static const auto* const fields = new Fields<L>{
      field<L, &L::dtype>("dtype", "DTypeLike", "\"u8\"",
                          "u8: anything but 0 lets the row see the key; f32, f16 and bf16 are "
                          "added to the score."),
      field<L, &L::offset>("offset", "int", "0", "Of element [0][0][0][0]."),
      field<L, &L::batch_stride>("batch_stride", "int", "0", "Elements from b to b + 1."),
      field<L, &L::head_stride>("head_stride", "int", "0", "Elements from head to head."),
      field<L, &L::row_stride>("row_stride", "int", "0", "Elements from query to query."),
      field<L, &L::key_stride>("key_stride", "int", "1", "Elements from key to key."),
  };
  return *fields;
}

const Fields<HeadLayout>& head_fields() {
  using L = HeadLayout;
  static const auto* const fields = new Fields<L>{
      field<L, &L::dtype>("dtype", "DTypeLike", "\"f32\"", "Of the numbers."),
      field<L, &L::offset>("offset", "int", "0", "Of the number of head 0."),
      field<L, &L::batch_stride>("batch_stride", "int", "0", "Elements from b to b + 1."),
      field<L, &L::head_stride>("head_stride", "int", "1", "Elements from head to head."),
  };
  return *fields;
}

const Fields<PageTable>& page_fields() {
  using T = PageTable;
  static const auto* const fields = new Fields<T>{
      field<T, &T::dtype>("dtype", "DTypeLike", "\"i32\"", "Of the page numbers: i32 or i64."),
      field<T, &T::page_len>("page_len", "int", "1", "Slots of a page."),
      field<T, &T::n_pages>("n_pages", "int", "1", "Pages that k and v have."),
      field<T, &T::offset>("offset", "int", "0", "Of entry [0][0] of the table."),
      field<T, &T::sequence_stride>("sequence_stride", "int", "0",
                                    "Elements from the first entry of b to that of b + 1."),
      field<T, &T::entry_stride>("entry_stride", "int", "1", "Elements from entry to entry."),
      field<T, &T::starts>("starts", "Sequence[int]", "()",
                           "First entry of each sequence, in entries; empty: sequence_stride says "
                           "it."),
      field<T, &T::n_entries>("n_entries", "int", "0", "Of one sequence, or of all with starts."),
      field<T, &T::check_entries>("check_entries", "bool", "True",
                                  "Whether entries that any row sees are looked at when the work "
                                  "is recorded; replays read the table anew."),
  };
  return *fields;
}

/// Values, not places: a problem takes another layout whole.
template <typename Layout>
void bind_layout(nb::module_& module, const char* name, const Fields<Layout>& fields,
                 const char* doc) {
  nb::class_<Layout> bound(module, name, doc);
  bind_init(bound, name, fields);
  bind_fields(bound, name, fields, Access::read);
}

// --- the problem --------------------------------------------------------------------------------

template <typename Owner>
Fields<Owner> visibility_fields() {
  using V = Visibility;
  return {
      field<Owner, &V::causal>("causal", "bool", "False",
                               "Nothing behind the query's own position."),
      field<Owner, &V::window_left>("window_left", "int", "-1",
                                    "Positions before the query's own; -1: unlimited."),
      field<Owner, &V::window_right>("window_right", "int", "-1",
                                     "Positions behind the query's own; -1: unlimited."),
      field<Owner, &V::kv_len>("kv_len", "int", "1", "One past the last slot in use, 0 to S."),
      field<Owner, &V::kv_start>("kv_start", "int", "0", "First slot in use, 0 to S."),
      field<Owner, &V::q_start>("q_start", "int | None", "None",
                                "Position of query 0; None: the last row in use meets the last "
                                "key."),
      field<Owner, &V::query_len>("query_len", "int | None", "None",
                                  "Rows in use, 0 to L; None: all."),
      field<Owner, &V::kv_lengths>("kv_lengths", "Sequence[int]", "()",
                                   "kv_len of each sequence, or empty."),
      field<Owner, &V::kv_starts>("kv_starts", "Sequence[int]", "()",
                                  "kv_start of each sequence, or empty."),
      field<Owner, &V::q_starts>("q_starts", "Sequence[int]", "()",
                                 "q_start of each sequence, or empty."),
      field<Owner, &V::query_lengths>("query_lengths", "Sequence[int]", "()",
                                      "query_len of each sequence, or empty."),
      field<Owner, &V::key_offset>("key_offset", "int", "0", "Position of slot 0."),
      field<Owner, &V::key_stride>("key_stride", "int", "1", "Positions from slot to slot."),
  };
}

const Fields<Visibility>& visibility_table() {
  static const auto* const fields = new Fields<Visibility>(visibility_fields<Visibility>());
  return *fields;
}

const Fields<SdpaProblem>& problem_fields() {
  using P = SdpaProblem;
  static const auto* const fields = [] {
    auto* const made = new Fields<P>{
        field<P, &P::dtype>("dtype", "DTypeLike", "\"f32\"", "Of q, k and v: f32, f16 or bf16."),
        field<P, &P::batch>("batch", "int", "1", "B."),
        field<P, &P::n_heads>("n_heads", "int", "1", "Hq, a multiple of n_kv_heads."),
        field<P, &P::n_kv_heads>("n_kv_heads", "int", "1", "Hkv."),
        field<P, &P::seq_len>("seq_len", "int", "1", "L."),
        field<P, &P::kv_capacity>("kv_capacity", "int", "1", "S: rows that k and v hold a head."),
        field<P, &P::head_dim>("head_dim", "int", "1", "D."),
        field<P, &P::value_dim>("value_dim", "int", "1", "Dv."),
    };
    for (const Field<P>& entry : visibility_fields<P>()) made->push_back(entry);
    const Field<P> rest[] = {
        field<P, &P::scale>("scale", "float", "1.0", "Of q . k, finite."),
        field<P, &P::softcap>("softcap", "float", "0.0", "c of c * tanh(x / c); 0: none."),
        field<P, &P::mask>("mask", "MaskLayout | None", "None", "Where the mask's elements are."),
        field<P, &P::alibi_slopes>("alibi_slopes", "HeadLayout | None", "None",
                                   "Where the ALiBi slopes are, f32."),
        field<P, &P::sinks>("sinks", "HeadLayout | None", "None",
                            "Where the sinks are, f32 or of q's dtype."),
        field<P, &P::q_rows>("q_rows", "Sequence[int]", "()",
                             "First row of each sequence in packed q, out [Hq, Tq, D] and lse "
                             "[Hq, Tq]; empty: they have a batch."),
        field<P, &P::q_total>("q_total", "int", "0", "Tq, rows of packed q."),
        field<P, &P::kv_rows>("kv_rows", "Sequence[int]", "()",
                              "First row of each sequence in packed k and v [Hkv, Tk, D]; empty: "
                              "they have a batch."),
        field<P, &P::kv_total>("kv_total", "int", "0", "Tk, rows of packed k and v."),
        field<P, &P::pages>("pages", "PageTable | None", "None",
                            "Where k and v [n_pages, Hkv, page_len, D] are in pages; S is the most "
                            "slots of a sequence."),
        field<P, &P::out_f32>("out_f32", "bool", "False", "out is f32 whatever q's dtype is."),
        field<P, &P::return_lse>("return_lse", "bool", "False",
                                 "Write the log of the softmax denominators, f32 [B, Hq, L]."),
        field<P, &P::q>("q", "TensorLayout", "...", "Of q; packed unless given."),
        field<P, &P::k>("k", "TensorLayout", "...", "Of k; packed unless given."),
        field<P, &P::v>("v", "TensorLayout", "...", "Of v; packed unless given."),
        field<P, &P::out>("out", "TensorLayout", "...", "Of out; packed unless given."),
        field<P, &P::kernel>("kernel", "str", "\"\"",
                             "A kernel family to force; empty: the planner's choice."),
    };
    for (const Field<P>& entry : rest) made->push_back(entry);
    return made;
  }();
  return *fields;
}

/// What follows from other fields where the call does not give it: D, S and packed layouts.
SdpaProblem make_problem(const nb::kwargs& keywords) {
  SdpaProblem problem;
  const auto set = [&](nb::handle key, nb::handle value) {
    set_field(kProblem, problem_fields(), problem, key, value);
  };
  for (const auto& [key, value] : keywords) set(key, value);
  if (!keywords.contains("value_dim")) problem.value_dim = problem.head_dim;
  if (!keywords.contains("kv_len")) problem.kv_len = problem.kv_capacity;
  problem.set_packed_layouts();
  for (const char* name : {"q", "k", "v", "out"}) {
    if (keywords.contains(name)) set(nb::str(name), keywords[name]);
  }
  return problem;
}

void bind_sdpa_problem(nb::module_& module) {
  nb::class_<SdpaProblem> bound(
      module, kProblem,
      "One attention problem: q [B, Hq, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv], out [B, Hq, L, "
      "Dv].\n\nUnless given, value_dim is head_dim, kv_len is kv_capacity, and the layouts are "
      "packed row-major.");
  bound.def(
      "__init__",
      [](SdpaProblem* self, const nb::kwargs& keywords) {
        new (self) SdpaProblem(make_problem(keywords));
      },
      nb::sig(init_signature(problem_fields())));
  bind_fields(bound, kProblem, problem_fields(), Access::write);
  bound.def("set_packed_layouts", &SdpaProblem::set_packed_layouts,
            "Gives q, k, v and out the layouts of packed row-major tensors of the shape.");
}

const Fields<SdpaOperands>& operand_fields() {
  using O = SdpaOperands;
  static const auto* const fields = new Fields<O>{
      field<O, &O::q>("q", "Buffer | None", "None", "Read."),
      field<O, &O::k>("k", "Buffer | None", "None", "Read."),
      field<O, &O::v>("v", "Buffer | None", "None", "Read."),
      field<O, &O::out>("out", "Buffer | None", "None", "Written."),
      field<O, &O::lse>("lse", "Buffer | None", "None", "Written where the problem returns lse."),
      field<O, &O::mask>("mask", "Buffer | None", "None", "Read where the problem has a mask."),
      field<O, &O::sinks>("sinks", "Buffer | None", "None", "Read where the problem has sinks."),
      field<O, &O::alibi_slopes>("alibi_slopes", "Buffer | None", "None",
                                 "Read where the problem has slopes."),
      field<O, &O::block_table>("block_table", "Buffer | None", "None",
                                "Page numbers, read where the problem has pages."),
  };
  return *fields;
}

}  // namespace

void bind_problem(nb::module_& module) {
  bind_layout(module, "TensorLayout", tensor_fields(),
              "Where element [b][h][i][d] of a tensor stands: offset + b * batch_stride + h * "
              "head_stride +\ni * row_stride + d elements from the start of its Buffer.");
  bind_layout(module, "MaskLayout", mask_fields(),
              "Where element [b][h][i][j] of a mask over [B, Hq, L, S] stands; a stride of 0 "
              "broadcasts.");
  bind_layout(module, "HeadLayout", head_fields(), "Where a number a head stands, in elements.");
  bind_layout(module, "PageTable", page_fields(),
              "Slot j of a sequence is row j % page_len of the page that its entry j // page_len "
              "names.");
  nb::class_<Visibility> visibility(module, "Visibility",
                                    "Which keys the queries of an sdpa node see.");
  bind_fields(visibility, "Visibility", visibility_table(), Access::read);
  bind_sdpa_problem(module);
  nb::class_<SdpaOperands> operands(module, "SdpaOperands",
                                    "Memory of a problem. A tensor without elements needs none.");
  bind_init(operands, "SdpaOperands", operand_fields());
  bind_fields(operands, "SdpaOperands", operand_fields(), Access::write);
}

}  // namespace metal_sdpa::python
