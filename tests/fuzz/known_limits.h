// Inputs that the fuzzer leaves out. Each line is a fault that is known: remove the line with the
// fault, and the fuzzer tries those inputs too.
#pragma once

namespace metal_sdpa::fuzz {

/// NaN and infinity in V. In rows that causality hides from a query they must not reach it.
inline constexpr bool kWildValuesInV = false;

/// Scores past FLT_MAX / log2 e, finite in f32: the kernels multiply them by log2 e.
inline constexpr bool kHugeScores = false;

/// Rows of equal elements, which round the same way at every addition: past the f32 bound.
inline constexpr bool kEqualElements = false;

}  // namespace metal_sdpa::fuzz
