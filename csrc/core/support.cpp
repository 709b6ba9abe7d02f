// The table of features.
#include "metal_sdpa/support.h"

#include "core/text.h"

namespace metal_sdpa {
namespace {

constexpr std::string_view kYes{};
constexpr std::string_view kNotBuilt = "is not built yet";

}  // namespace

const std::vector<SupportedFeature>& supported_features() {
  static const auto* const features = new std::vector<SupportedFeature>{
      {"f32", kYes, kYes},
      {"f16", kYes, kYes},
      {"bf16", kYes, kYes},
      {"causal", kYes, kYes},
      {"q_start", kYes, kYes},
      {"kv_lengths", kYes, kYes},
      {"return_lse", kYes, kYes},
      {"grouped_queries", kYes, kYes},
      {"strides", kYes, kYes},
      {"mask", kNotBuilt, kNotBuilt},
      {"window", kNotBuilt, kNotBuilt},
      {"softcap", kNotBuilt, kNotBuilt},
      {"sinks", kNotBuilt, kNotBuilt},
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

}  // namespace metal_sdpa
