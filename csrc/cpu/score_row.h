// What happens to the scores of one query row, key by key: for kernels that take a row by itself.
#pragma once

#include <cmath>
#include <limits>

#include "cpu/element.h"
#include "metal_sdpa/native_kernel.h"
#include "shaders/sdpa_args.h"

namespace metal_sdpa::cpu {

/// Query row i of head h of sequence b.
struct RowPlace {
  sdpa_i64 b;
  sdpa_i64 h;
  sdpa_i64 i;
};

inline SdpaSequence sequence_of(const NativeLaunch& launch, const SdpaArgs& args, sdpa_i64 b) {
  if (!launch.bound(SDPA_BUFFER_SEQUENCES)) return args.sequence;
  return launch.buffer<const SdpaSequence>(SDPA_BUFFER_SEQUENCES)[b];
}

/// Element `index` of memory of SDPA_ELEMENT_* kind `kind`; a boolean is 0, or -inf where it hides.
inline float element_of(const void* memory, sdpa_u32 kind, sdpa_i64 index) {
  switch (kind) {
    case SDPA_ELEMENT_F32:
      return load(static_cast<const float*>(memory) + index);
    case SDPA_ELEMENT_F16:
      return load(static_cast<const F16*>(memory) + index);
    case SDPA_ELEMENT_BF16:
      return load(static_cast<const BF16*>(memory) + index);
    default:
      return static_cast<const std::uint8_t*>(memory)[index] != 0
                 ? 0.0f
                 : -std::numeric_limits<float>::infinity();
  }
}

/// The sink of a head, -inf where there is none.
inline float sink_of(const NativeLaunch& launch, const SdpaArgs& args, sdpa_i64 h) {
  if (args.sinks_kind == SDPA_ELEMENT_NONE) return -std::numeric_limits<float>::infinity();
  return element_of(launch.bindings[SDPA_BUFFER_SINKS].data, args.sinks_kind,
                    args.sinks_offset + h * args.sinks_head);
}

template <typename Real>
class ScoreRow {
 public:
  ScoreRow(const NativeLaunch& launch, const SdpaArgs& args, const RowPlace& row)
      : softcap_(args.softcap), mask_kind_(args.mask_kind), key_stride_(args.window.key_stride) {
    const SdpaSequence sequence = sequence_of(launch, args, row.b);
    band_ = sdpa_band(sequence, args.window, row.i);
    distance_ = sequence.q_start + row.i - args.window.key_offset;
    if (args.has_alibi != 0) {
      slope_ = launch.buffer<const float>(
          SDPA_BUFFER_ALIBI)[args.alibi_offset + row.b * args.alibi_batch +
                             row.h * args.alibi_head];
    }
    if (args.mask_kind == SDPA_ELEMENT_NONE) return;
    const SdpaMaskStrides& stride = args.mask_stride;
    mask_ = launch.bindings[SDPA_BUFFER_MASK].data;
    mask_begin_ = args.mask_offset + row.b * stride.batch + row.h * stride.head +
                  (sequence.q_row + row.i) * stride.row;
    mask_step_ = stride.key;
  }

  const SdpaBand& band() const { return band_; }

  /// Whether the mask hides key j.
  bool hides(sdpa_i64 j) const { return mask_ != nullptr && entry(j) == -kInfinity; }

  /// From scale * (q . k_j) to the score of a key that the mask does not hide.
  Real score(Real x, sdpa_i64 j) const {
    if (softcap_ != 0) x = softcap_ * std::tanh(x / softcap_);
    if (slope_ != 0) x -= slope_ * std::fabs(static_cast<Real>(distance_ - j * key_stride_));
    return mask_ == nullptr ? x : x + entry(j);
  }

 private:
  static constexpr Real kInfinity = std::numeric_limits<Real>::infinity();

  Real entry(sdpa_i64 j) const {
    return element_of(mask_, mask_kind_, mask_begin_ + j * mask_step_);
  }

  SdpaBand band_;
  Real softcap_;
  Real slope_ = 0;
  const void* mask_ = nullptr;
  sdpa_u32 mask_kind_;
  sdpa_i64 mask_begin_ = 0;
  sdpa_i64 mask_step_ = 0;
  sdpa_i64 distance_;  ///< from slot 0's position to the query's
  sdpa_i64 key_stride_;
};

}  // namespace metal_sdpa::cpu
