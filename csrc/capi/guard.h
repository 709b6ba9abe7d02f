// The boundary to C: no exception leaves a call, and each that fails leaves its text.
#pragma once

#include "metal_sdpa/c.h"

namespace metal_sdpa::capi {

/// The status of the exception in flight, whose text becomes the thread's last message.
metal_sdpa_status take_exception() noexcept;

/// What every function of the interface runs its work in.
template <typename Work>
metal_sdpa_status guarded(const Work& work) noexcept {
  try {
    work();
    return METAL_SDPA_OK;
  } catch (...) {
    return take_exception();
  }
}

}  // namespace metal_sdpa::capi
