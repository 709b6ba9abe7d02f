// Attention over parts of the keys, merged into attention over all of them.
#pragma once

#include <cstdint>

#include "metal_sdpa/sdpa.h"

namespace metal_sdpa {

/// Where element [i][b][h][r][d] of several states stands, in elements from the start of their
/// Buffer: offset + i * state_stride + b * batch_stride + h * head_stride + r * row_stride + d.
struct StatesLayout {
  std::int64_t offset = 0;
  std::int64_t state_stride = 0;
  std::int64_t batch_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t row_stride = 0;
};

/// outs [n, B, H, rows, width] with log-sum-exps f32 [n, B, H, rows] become out [B, H, rows, width]
/// and lse f32 [B, H, rows]:
///   out = sum_i w_i out_i / sum_i w_i,  w_i = exp(lse_i),  lse = log sum_i w_i,
/// all in f32 and rounded once. A state whose lse is -inf counts for nothing, whatever its out
/// holds; a row of such states alone is 0, its lse -inf.
struct METAL_SDPA_API MergeProblem {
  DType dtype = DType::f32;      ///< of outs: f32, f16 or bf16
  DType out_dtype = DType::f32;  ///< of out: f32, f16 or bf16
  std::int64_t n_states = 1;     ///< n, 1 or more
  std::int64_t batch = 1;        ///< B
  std::int64_t heads = 1;        ///< H
  std::int64_t rows = 1;
  std::int64_t width = 1;  ///< elements of a row: Dv of the attention
  StatesLayout outs, lses;
  TensorLayout out, lse;

  /// Layouts of packed row-major tensors for the shape above.
  void set_packed_layouts();
};

struct MergeOperands {
  Buffer outs, lses, out, lse;
};

/// Validates, records and returns; the caller commits. `out` and `lse` may be one of the states'
/// own memory, element for element; InvalidArgument where they overlap otherwise.
///
///   MergeProblem merge;
///   merge.n_states = 2;  merge.heads = 32;  merge.width = 128;
///   merge.set_packed_layouts();
///   encode_merge_states(encoder, registry, device, {outs, lses, out, lse}, merge);
METAL_SDPA_API void encode_merge_states(CommandEncoder& encoder, const KernelRegistry& registry,
                                        const Device& device, const MergeOperands& operands,
                                        const MergeProblem& problem);

/// The same with the device's own registry; runs and waits.
METAL_SDPA_API void merge_states(const Device& device, const MergeOperands& operands,
                                 const MergeProblem& problem);

}  // namespace metal_sdpa
