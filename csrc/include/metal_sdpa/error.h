// The one exception type of the library; its code says which Python class it becomes.
#pragma once

#include <stdexcept>
#include <string>

#include "metal_sdpa/export.h"

namespace metal_sdpa {

enum class ErrorCode {
  invalid_argument,    ///< a value, shape, state or range that the call does not take
  unsupported_dtype,   ///< a dtype, or a mix of dtypes, that the kernel does not take
  unsupported,         ///< not built yet, or not on this device
  device_not_found,    ///< no such device kind, or no such device on this machine
  kernel_not_found,    ///< no library of the registry has the function for this device
  shader_compilation,  ///< the compiler refused; the text holds its whole log
  command_buffer,      ///< the device reported an error while it ran a command buffer
  buffer_allocation,   ///< the device had no memory for a buffer
  interrupted,         ///< the interrupt check asked to stop; the work was cancelled
};

/// Thrown by every function of the library that can fail; destructors and completion handlers
/// never throw. The text names the call, the argument, what it got and what it takes.
class METAL_SDPA_API Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& text) : std::runtime_error(text), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace metal_sdpa
