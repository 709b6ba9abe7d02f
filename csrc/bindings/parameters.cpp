// The tables, and the texts that are made from them.
#include "parameters.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "bindings.h"
#include "convert.h"
#include "core/text.h"

namespace metal_sdpa::python {
namespace {

constexpr const char* kArray = "Array";
constexpr const char* kMaybeArray = "Array | None";
constexpr const char* kInts = "int | Sequence[int] | Array | None";
constexpr const char* kIndices = "Indices";
constexpr const char* kNoFeature = "";
constexpr const char* kRequired = "";

constexpr Parameter kSdpa[] = {
    {"q", &SdpaCall::q, "ArrayT", kRequired, kNoFeature,
     "[B, Hq, L, D], f32, f16 or bf16; NumPy or anything with __dlpack__ (torch, JAX, MLX). A "
     "NumPy "
     "uint16 array holds bfloat16 bits; ml_dtypes.bfloat16 works too."},
    {"k", &SdpaCall::k, kArray, kRequired, kNoFeature,
     "[B, Hkv, S, D], of q's dtype. Query head h reads KV head h // (Hq // Hkv). q, k and v have "
     "any strides, as long as the last dimension is contiguous."},
    {"v", &SdpaCall::v, kArray, kRequired, kNoFeature, "[B, Hkv, S, Dv], of q's dtype."},
    {"causal", &SdpaCall::causal, "bool", "False", "causal",
     "Query i of a sequence stands at position q_start + i and sees no key behind it."},
    {"q_start", &SdpaCall::q_start, kInts, "None", "q_start",
     "An int, or one a sequence; may be negative. Default: kv_len less the queries in use, so that "
     "the last query meets the last key. torch's is_causal is q_start=0."},
    {"scale", &SdpaCall::scale, "float | None", "None", kNoFeature,
     "Of q . k, finite; 0 and negative are allowed. Default: 1 / sqrt(D)."},
    {"mask", &SdpaCall::mask, kMaybeArray, "None", "mask",
     "bool (True = attend), or f32, f16 or bf16 numbers that are added to the scores, whatever q's "
     "dtype is. Broadcast to [B, Hq, L, S] from the right; any strides, never copied. -inf hides; "
     "a NaN at a visible key gives a NaN row."},
    {"window", &SdpaCall::window, "int | tuple[int | None, int | None] | None", "None", "window",
     "An int W: W keys with the query's own, none behind it. Or a pair (left, right): keys at most "
     "left positions before the query's and right behind it, None or -1 for unlimited."},
    {"softcap", &SdpaCall::softcap, "float | None", "None", "softcap",
     "c, above 0 and finite: a score x becomes c * tanh(x / c), before ALiBi and mask."},
    {"sinks", &SdpaCall::sinks, kMaybeArray, "None", "sinks",
     "[Hq] or a scalar array, f32 or q's dtype, finite or -inf: one more score of every row, which "
     "has no value; lse counts it."},
    {"alibi_slopes", &SdpaCall::alibi_slopes, kMaybeArray, "None", "alibi_slopes",
     "[Hq] or [B, Hq], f32, finite: slope * |position of the query - position of the key| is taken "
     "off the scores."},
    {"kv_lengths", &SdpaCall::kv_lengths, kInts, "None", "kv_lengths",
     "Keys in use, 0 to S: an int, or one a sequence. Default: S. Slots past them never matter, "
     "whatever bits they hold."},
    {"kv_starts", &SdpaCall::kv_starts, kInts, "None", "kv_starts",
     "First slot in use, 0 to S (left padding): an int, or one a sequence. Default: 0."},
    {"query_lengths", &SdpaCall::query_lengths, kInts, "None", "query_lengths",
     "Queries in use, 0 to L: an int, or one a sequence. Default: L. Rows past them see no key and "
     "cost nothing. Where they differ, the kernel goes by the largest."},
    {"key_offset", &SdpaCall::key_offset, "int", "0", "key_offset",
     "Slot j stands at position key_offset + j * key_stride (a shard of the keys); other than 0 "
     "and 1 they want a given q_start."},
    {"key_stride", &SdpaCall::key_stride, "int", "1", "key_offset", "See key_offset; 1 or more."},
    {"out", &SdpaCall::out, "ArrayT | None", "None", "out_f32",
     "[B, Hq, L, Dv] to write into, of q's dtype or f32; writable, and overlapping neither itself "
     "nor an input."},
    {"return_lse", &SdpaCall::return_lse, "bool", "False", "return_lse",
     "Also return the natural log of the softmax denominators, f32 [B, Hq, L]."},
    {"device", &SdpaCall::device, "Device | str | None", "None", kNoFeature,
     "A Device, \"cpu\", \"metal\" or \"auto\". Default: where the arrays are. On Metal, host "
     "arrays are copied in and out."},
};

/// A row of sdpa()'s, as another call takes it.
Parameter row_of(std::string_view name) {
  for (const Parameter& row : kSdpa) {
    if (row.name == name) return row;
  }
  std::abort();
}

Parameter with_text(std::string_view name, const char* text) {
  Parameter row = row_of(name);
  row.text = text;
  return row;
}

constexpr const char* kPackedMask =
    "As sdpa() takes it, broadcast to [Hq, Tq, M] from the right: column j is slot j of the row's "
    "sequence, M at least the longest kv_length.";

Signature sdpa_signature() {
  return {3, std::vector<Parameter>(std::begin(kSdpa), std::end(kSdpa))};
}

Signature varlen_signature() {
  return {
      5,
      {
          with_text("q",
                    "[Tq, Hq, D], f32, f16 or bf16: rows of all sequences, one behind the "
                    "other."),
          with_text("k", "[Tk, Hkv, D], of q's dtype; any strides but the last dimension's."),
          with_text("v", "[Tk, Hkv, Dv], of q's dtype."),
          {"cu_seqlens_q", &SdpaCall::cu_seqlens_q, kIndices, kRequired, "varlen",
           "[B + 1], int32 or int64: sequence b has rows cu_seqlens_q[b] to cu_seqlens_q[b + 1] of "
           "q. From 0, not falling; rows past the last are of no sequence."},
          {"cu_seqlens_k", &SdpaCall::cu_seqlens_k, kIndices, kRequired, "varlen",
           "The same of k and v. Sequences without queries or keys are fine."},
          row_of("causal"),
          row_of("q_start"),
          row_of("scale"),
          with_text("mask", kPackedMask),
          row_of("window"),
          row_of("softcap"),
          row_of("sinks"),
          row_of("alibi_slopes"),
          with_text("kv_lengths",
                    "Keys in use of each sequence: an int, or int32 or int64 [B]. Default: all."),
          with_text("query_lengths",
                    "Queries in use of each sequence, as kv_lengths; later rows see no key."),
          row_of("key_offset"),
          row_of("key_stride"),
          with_text("out",
                    "[Tq, Hq, Dv] to write into, as sdpa() takes it; rows of no sequence "
                    "stay as they are."),
          with_text("return_lse",
                    "Also return the natural log of the softmax denominators, f32 "
                    "[Hq, Tq]."),
          row_of("device"),
      }};
}

Signature paged_signature() {
  Parameter causal = row_of("causal");
  causal.value = "True";
  return {
      5,
      {
          with_text("q", "[B, Hq, L, D]; with cu_seqlens_q [Tq, Hq, D]. f32, f16 or bf16."),
          {"k_pages", &SdpaCall::k, kArray, kRequired, kNoFeature,
           "[n_pages, page, Hkv, D], of q's dtype, or [n_pages, Hkv, page, D] with layout=\"HND\". "
           "Any page size, any strides but the last dimension's: K and V may be views of one "
           "tensor."},
          {"v_pages", &SdpaCall::v, kArray, kRequired, kNoFeature,
           "[n_pages, page, Hkv, Dv] or [n_pages, Hkv, page, Dv], of q's dtype."},
          {"block_table", &SdpaCall::block_table, "Array | tuple[Indices, Array]", kRequired,
           "paged",
           "[B, max_blocks], int32 or int64: slot j of sequence b is row j % page of page "
           "block_table[b, j // page]. Or (indptr, indices): its pages are indices[indptr[b] : "
           "indptr[b + 1]]. A page may serve several sequences; entries that no query needs are "
           "not "
           "looked at."},
          {"kv_lengths", &SdpaCall::kv_lengths, kIndices, kRequired, "kv_lengths",
           "[B], int32 or int64: slots in use of each sequence."},
          {"cu_seqlens_q", &SdpaCall::cu_seqlens_q, "Indices | None", "None", "varlen",
           "[B + 1], int32 or int64, as sdpa_varlen() takes it: decode rows, chunks and whole "
           "prompts in one call."},
          causal,
          row_of("q_start"),
          row_of("scale"),
          with_text("mask",
                    "As sdpa() takes it, broadcast to [B, Hq, L, M], or to [Hq, Tq, M] with "
                    "cu_seqlens_q: column j is slot j of the row's sequence, M at least "
                    "the longest kv_length."),
          row_of("window"),
          row_of("softcap"),
          row_of("sinks"),
          row_of("alibi_slopes"),
          row_of("key_offset"),
          row_of("key_stride"),
          {"layout", &SdpaCall::layout, "Literal[\"NHD\", \"HND\"]", "\"NHD\"", kNoFeature,
           "Axes of a page: \"NHD\" (slots, heads) or \"HND\" (heads, slots)."},
          {"check_indices", &SdpaCall::check_indices, "bool", "True", kNoFeature,
           "Whether page numbers are checked. Without, one out of range reads other memory."},
          with_text("out",
                    "[B, Hq, L, Dv] or [Tq, Hq, Dv] to write into, as sdpa_varlen() takes "
                    "it."),
          with_text("return_lse",
                    "Also return the natural log of the softmax denominators, f32 "
                    "[B, Hq, L] or [Hq, Tq]."),
          row_of("device"),
      }};
}

constexpr std::size_t kTextColumn = 16;
constexpr std::size_t kLineEnd = 100;

/// Appends words, with lines that begin in kTextColumn and end before kLineEnd.
void append_wrapped(std::string& text, std::string_view words, std::size_t column) {
  while (!words.empty()) {
    const std::size_t end = std::min(words.find(' '), words.size());
    if (column + 1 + end > kLineEnd) {
      text += "\n" + std::string(kTextColumn - 1, ' ');
      column = kTextColumn - 1;
    }
    text += " ";
    text += words.substr(0, end);
    column += 1 + end;
    words.remove_prefix(std::min(end + 1, words.size()));
  }
}

nb::list parameter_rows(const std::string& call) {
  const std::optional<KeyRows> keys = find_call(call);
  if (!keys.has_value()) {
    fail_argument("parameters: call: \"", call, "\", takes sdpa, sdpa_varlen or sdpa_paged");
  }
  nb::list rows;
  for (const Parameter& row : signature_of(*keys).parameters) {
    rows.append(nb::make_tuple(row.name, row.type, row.value, row.feature, row.text));
  }
  return rows;
}

}  // namespace

const Signature& signature_of(KeyRows keys) {
  static const Signature* const signatures[kKeyRows] = {new Signature(sdpa_signature()),
                                                        new Signature(varlen_signature()),
                                                        new Signature(paged_signature())};
  return *signatures[static_cast<std::size_t>(keys)];
}

const char* call_name(KeyRows keys) {
  if (keys == KeyRows::packed) return "sdpa_varlen";
  return keys == KeyRows::paged ? "sdpa_paged" : "sdpa";
}

std::optional<KeyRows> find_call(std::string_view name) {
  for (const KeyRows keys : {KeyRows::dense, KeyRows::packed, KeyRows::paged}) {
    if (name == call_name(keys)) return keys;
  }
  return std::nullopt;
}

std::string signature_text(KeyRows keys) {
  const Signature& signature = signature_of(keys);
  std::string text = "($module, /";
  for (std::size_t i = 0; i < signature.parameters.size(); ++i) {
    if (i == signature.n_positional) text += ", *";
    const Parameter& row = signature.parameters[i];
    text += text_of(", ", row.name);
    if (*row.value != '\0') text += text_of("=", row.value);
  }
  return text + ")";
}

std::string arguments_text(KeyRows keys) {
  std::string text;
  for (const Parameter& row : signature_of(keys).parameters) {
    std::string line = text_of("  ", row.name);
    line.resize(kTextColumn - 1, ' ');
    text += line;
    append_wrapped(text, row.text, kTextColumn - 1);
    text += "\n";
  }
  return text;
}

void bind_parameters(nb::module_& module) {
  module.def("parameters", &parameter_rows, nb::arg("call") = "sdpa",
             nb::sig("def parameters(call: str = \"sdpa\") -> "
                     "list[tuple[str, str, str, str, str]]"),
             "The arguments of sdpa(), sdpa_varlen() or sdpa_paged(): (name, type, default, "
             "feature of supported_features(), meaning).");
}

}  // namespace metal_sdpa::python
