// The boundary to C: no exception leaves a call, and each that fails leaves its text.
#pragma once

#include <exception>
#include <new>

#include "metal_sdpa/c.h"
#include "metal_sdpa/error.h"

namespace metal_sdpa::capi {

/// The status, whose text becomes the thread's last message.
metal_sdpa_status failed(metal_sdpa_status status, const char* text) noexcept;
metal_sdpa_status failed(const Error& error) noexcept;

/// What every function of the interface runs its work in.
template <typename Work>
metal_sdpa_status guarded(const Work& work) noexcept {
  try {
    work();
    return METAL_SDPA_OK;
  } catch (const Error& error) {
    return failed(error);
  } catch (const std::bad_alloc&) {
    return failed(METAL_SDPA_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return failed(METAL_SDPA_INTERNAL, error.what());
  } catch (...) {
    return failed(METAL_SDPA_INTERNAL, "an exception of an unknown type");
  }
}

}  // namespace metal_sdpa::capi
