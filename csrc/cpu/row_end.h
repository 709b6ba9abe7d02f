// The end of a row that has a sink: one more weight, which has no value.
#pragma once

namespace metal_sdpa::cpu {

struct RowEnd {
  double divisor;  ///< of the numerators, in units of exp(maximum); +inf: nothing is left of them
  float lse;
};

/// Of a row whose largest score is `maximum` and whose weights add up to `sum` in units of
/// exp(maximum). In float64: the sink may be far above the row's scores, or below.
RowEnd end_with_sink(double maximum, double sum, double sink) noexcept;

}  // namespace metal_sdpa::cpu
