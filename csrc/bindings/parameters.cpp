// The table, and the texts that are made from it.
#include "parameters.h"

#include <string_view>

#include "bindings.h"
#include "core/text.h"

namespace metal_sdpa::python {
namespace {

constexpr const char* kArray = "Array";
constexpr const char* kMaybeArray = "Array | None";
constexpr const char* kInts = "int | Sequence[int] | Array | None";
constexpr const char* kNoFeature = "";
constexpr const char* kRequired = "";

constexpr std::array<Parameter, kParameters> kTable{{
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
}};

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

nb::list parameter_rows() {
  nb::list rows;
  for (const Parameter& row : kTable) {
    rows.append(nb::make_tuple(row.name, row.type, row.value, row.feature, row.text));
  }
  return rows;
}

}  // namespace

const std::array<Parameter, kParameters>& parameters() { return kTable; }

std::string signature_text() {
  std::string text = "($module, /, ";
  for (std::size_t i = 0; i < kParameters; ++i) {
    if (i == kPositional) text += "*, ";
    text += kTable[i].name;
    if (*kTable[i].value != '\0') text += text_of("=", kTable[i].value);
    text += i + 1 == kParameters ? ")" : ", ";
  }
  return text;
}

std::string arguments_text() {
  std::string text;
  for (const Parameter& row : kTable) {
    std::string line = text_of("  ", row.name);
    line.resize(kTextColumn - 1, ' ');
    text += line;
    append_wrapped(text, row.text, kTextColumn - 1);
    text += "\n";
  }
  return text;
}

void bind_parameters(nb::module_& module) {
  module.def("parameters", &parameter_rows,
             nb::sig("def parameters() -> list[tuple[str, str, str, str, str]]"),
             "The arguments of sdpa(): (name, type, default, feature of supported_features(), "
             "meaning).");
}

}  // namespace metal_sdpa::python
