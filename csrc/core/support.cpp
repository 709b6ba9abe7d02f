// The table of features.
#include "metal_sdpa/support.h"

#include "core/text.h"
#include "core/validation.h"

namespace metal_sdpa {
namespace {

constexpr std::string_view kYes{};

}  // namespace

const std::vector<SupportedFeature>& supported_features() {
  static const auto* const features = new std::vector<SupportedFeature>{
      {"f32", kYes, kYes},        {"f16", kYes, kYes},
      {"bf16", kYes, kYes},       {"causal", kYes, kYes},
      {"q_start", kYes, kYes},    {"kv_lengths", kYes, kYes},
      {"return_lse", kYes, kYes}, {"grouped_queries", kYes, kYes},
      {"strides", kYes, kYes},    {"mask", kYes, kYes},
      {"window", kYes, kYes},     {"softcap", kYes, kYes},
      {"sinks", kYes, kYes},      {"alibi_slopes", kYes, kYes},
      {"kv_starts", kYes, kYes},  {"query_lengths", kYes, kYes},
      {"key_offset", kYes, kYes}, {"out_f32", kYes, kYes},
      {"varlen", kYes, kYes},     {"paged", kYes, kYes},
  };
  return *features;
}

std::string_view unsupported_reason(DeviceKind kind, std::string_view feature) {
  for (const SupportedFeature& row : supported_features()) {
    if (row.feature == feature) return kind == DeviceKind::metal ? row.metal : row.cpu;
  }
  fail_argument("supports: feature: \"", feature, "\" is not known");
}

void require_feature(const char* call, DeviceKind kind, std::string_view feature) {
  const std::string_view reason = unsupported_reason(kind, feature);
  if (reason.empty()) return;
  fail(ErrorCode::unsupported, call, ": ", feature, ": ", reason, " on the ",
       device_kind_name(kind), " device");
}

void require_features(const char* call, DeviceKind kind, const SdpaProblem& p) {
  const auto require = [&](bool is_asked_for, std::string_view feature) {
    if (is_asked_for) require_feature(call, kind, feature);
  };
  require(p.mask.has_value(), "mask");
  require(p.window_left >= 0 || p.window_right >= 0, "window");
  require(p.softcap != 0, "softcap");
  require(p.sinks.has_value(), "sinks");
  require(p.alibi_slopes.has_value(), "alibi_slopes");
  require(p.kv_start != 0 || !p.kv_starts.empty(), "kv_starts");
  require(p.query_len.has_value() || !p.query_lengths.empty(), "query_lengths");
  require(p.key_offset != 0 || p.key_stride != 1, "key_offset");
  require(p.has_packed_queries() || p.has_packed_keys(), "varlen");
  require(p.pages.has_value(), "paged");
  require(p.out_f32 && p.dtype != DType::f32, "out_f32");
}

}  // namespace metal_sdpa
