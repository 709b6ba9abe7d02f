#include "cpu/row_end.h"

#include <cmath>

namespace metal_sdpa::cpu {

RowEnd end_with_sink(double maximum, double sum, double sink) noexcept {
  const double divisor = sum + std::exp(sink - maximum);
  const double lse = sink > maximum ? sink + std::log1p(sum * std::exp(maximum - sink))
                                    : maximum + std::log(divisor);
  return {divisor, static_cast<float>(lse)};
}

}  // namespace metal_sdpa::cpu
