// What a device supports, asked without arrays.
#include "bindings.h"
#include "convert.h"
#include "device.h"
#include "metal_sdpa/sdpa.h"
#include "metal_sdpa/support.h"

namespace metal_sdpa::python {
namespace {

constexpr const char* kCall = "supports";

struct ProblemShape {
  std::int64_t n_heads, n_kv_heads, head_dim, value_dim;
};

/// The problem of one query and one key: what depends on lengths is no matter of support.
SdpaProblem smallest_problem(DType dtype, const ProblemShape& shape) {
  SdpaProblem problem;
  problem.dtype = dtype;
  problem.n_heads = shape.n_heads;
  problem.n_kv_heads = shape.n_kv_heads;
  problem.head_dim = shape.head_dim;
  problem.value_dim = shape.value_dim;
  problem.set_packed_layouts();
  return problem;
}

/// As `sdpa` takes q: of the DTypes those that attention computes in.
DType attention_dtype(nb::handle value) {
  constexpr const char* kTaken = "f32, f16 or bf16";
  const DType dtype = to_dtype({kCall, "dtype"}, value, kTaken);
  if (dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16) return dtype;
  fail(ErrorCode::unsupported_dtype, kCall, ": dtype: ", dtype_name(dtype), ", takes ", kTaken);
}

std::vector<std::string> to_features(nb::handle value) {
  constexpr Argument argument{kCall, "features"};
  const nb::object entries = entries_of(value);
  if (!entries.is_valid()) fail_type(argument, value, "a sequence of str");
  std::vector<std::string> features;
  for (const nb::handle feature : nb::borrow<nb::list>(entries)) {
    features.push_back(to_text(argument, feature));
  }
  return features;
}

std::string reason_against(nb::handle device, nb::handle dtype, nb::handle n_heads,
                           nb::handle n_kv_heads, nb::handle head_dim, nb::handle value_dim,
                           nb::handle features) {
  const ProblemShape shape{
      to_int64({kCall, "n_heads"}, n_heads), to_int64({kCall, "n_kv_heads"}, n_kv_heads),
      to_int64({kCall, "head_dim"}, head_dim), to_int64({kCall, "value_dim"}, value_dim)};
  const std::vector<std::string> wanted = to_features(features);
  try {
    const Device target = to_device({kCall, "device"}, device);
    const SdpaProblem problem = smallest_problem(attention_dtype(dtype), shape);
    for (const std::string& feature : wanted) require_feature(kCall, target.kind(), feature);
    validate_problem(problem, target.limits(), kCall);
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

nb::list features() {
  nb::list rows;
  for (const SupportedFeature& row : supported_features()) {
    rows.append(
        nb::make_tuple(std::string(row.feature), std::string(row.cpu), std::string(row.metal)));
  }
  return rows;
}

}  // namespace

void bind_supports(nb::module_& module) {
  module.def("unsupported_reason", &reason_against, nb::arg("device").none(),
             nb::arg("dtype").none(), nb::arg("n_heads").none(), nb::arg("n_kv_heads").none(),
             nb::arg("head_dim").none(), nb::arg("value_dim").none(), nb::arg("features"),
             nb::sig("def unsupported_reason(device: Device | str, dtype: DTypeLike, n_heads: int, "
                     "n_kv_heads: int, head_dim: int, value_dim: int, features: list[str]) -> str"),
             "Why the device does not run such a problem; empty where it does.");
  module.def("supported_features", &features,
             nb::sig("def supported_features() -> list[tuple[str, str, str]]"),
             "The table behind supports(): (feature, why not on the CPU, why not on Metal); empty "
             "text: supported.");
}

}  // namespace metal_sdpa::python
