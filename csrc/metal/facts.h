// What the planner knows of a Metal device: facts that never change while it exists.
#pragma once

#include <cstdint>

#include "shaders/sdpa_spans.h"

namespace metal_sdpa {

struct MetalFacts {
  /// Apple GPU family (7: M1, 8: M2, 9: M3 and M4, ...); 0 where the device reports none.
  int apple_family = 0;
  std::uint32_t max_threads_per_threadgroup = 1024;
  std::uint32_t max_threadgroup_memory = 32768;  ///< bytes
  /// No single dispatch is estimated above this, so that a display that shares the GPU stays alive
  /// and the watchdog of the command queue never fires; longer work is cut.
  double max_dispatch_seconds = 0.5;
  /// No dispatch leaves more bytes of span states than this; what leaves more is cut.
  double max_state_bytes = SDPA_MAX_STATE_BYTES;
};

/// Largest D and Dv of the Metal kernels: DeepSeek's 512 + 64 latent rows are the widest in use.
inline constexpr std::uint32_t kMetalMaxHeadDim = 576;

}  // namespace metal_sdpa
