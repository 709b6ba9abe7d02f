// One query row attended by itself, in float64: the rare row whose result a tile cannot give.
//   * A value that is not finite and that the row does not see makes 0 * inf = NaN of a tile's sum.
//   * Scores may be out of the range of f32, or of what a kernel scales them to.
//   * Sums of values near the largest float overflow where their mean is finite.
#pragma once

#include <cstdint>

#include "cpu/score_row.h"

namespace metal_sdpa::cpu {

enum class ElementKind { f32, f16, bf16 };

/// Writes value_dim elements to `out` and the log-sum-exp to `lse`. `kind` is that of q, k and v.
/// Keys whose score is -inf count as hidden; a row that sees no other is 0, its log-sum-exp -inf or
/// its sink. False when asked to stop, with nothing written.
bool attend_lone_row(const NativeLaunch& launch, const SdpaArgs& args, ElementKind kind,
                     const RowPlace& row, StopToken& stop, float* out, float& lse);

/// The sink of a head; the launch has sinks. Compiled with nobody's wide instructions.
float head_sink(const NativeLaunch& launch, const SdpaArgs& args, sdpa_i64 h) noexcept;

/// What a kernel has of a row before it divides by the sum of weights.
struct RowSummary {
  float largest_score;  ///< in whatever unit; -inf: none
  float sum;
  bool has_finite_numerators;
  bool sees_keys;  ///< or may: a mask is not looked at
};

/// Whether the row has to be attended by itself. One whose sum is NaN need not: a query or a key it
/// sees is NaN, and so is the row.
inline bool needs_lone_row(const RowSummary& row) {
  constexpr float kInfinity = __builtin_inff();
  if (row.largest_score == kInfinity || row.sum == kInfinity) return true;
  if (row.sum == 0) return row.sees_keys;
  return row.sum < kInfinity && !row.has_finite_numerators;
}

}  // namespace metal_sdpa::cpu
