// Statuses, and the message of each thread.
#include <string>

#include "capi/guard.h"
#include "metal_sdpa/error.h"

namespace metal_sdpa::capi {
namespace {

thread_local std::string last_message;

void keep_message(const char* text) noexcept {
  try {
    last_message = text;
  } catch (...) {
    last_message.clear();
  }
}

metal_sdpa_status status_of(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::invalid_argument:
      return METAL_SDPA_INVALID_ARGUMENT;
    case ErrorCode::unsupported_dtype:
      return METAL_SDPA_UNSUPPORTED_DTYPE;
    case ErrorCode::unsupported:
      return METAL_SDPA_UNSUPPORTED;
    case ErrorCode::device_not_found:
      return METAL_SDPA_DEVICE_NOT_FOUND;
    case ErrorCode::kernel_not_found:
      return METAL_SDPA_KERNEL_NOT_FOUND;
    case ErrorCode::shader_compilation:
      return METAL_SDPA_SHADER_COMPILATION;
    case ErrorCode::command_buffer:
      return METAL_SDPA_COMMAND_BUFFER;
    case ErrorCode::buffer_allocation:
      return METAL_SDPA_BUFFER_ALLOCATION;
    case ErrorCode::interrupted:
      return METAL_SDPA_INTERRUPTED;
  }
  return METAL_SDPA_INTERNAL;
}

}  // namespace

metal_sdpa_status failed(metal_sdpa_status status, const char* text) noexcept {
  keep_message(text);
  return status;
}

metal_sdpa_status failed(const Error& error) noexcept {
  return failed(status_of(error.code()), error.what());
}

}  // namespace metal_sdpa::capi

const char* metal_sdpa_status_name(metal_sdpa_status status) {
  switch (status) {
    case METAL_SDPA_OK:
      return "ok";
    case METAL_SDPA_INVALID_ARGUMENT:
      return "invalid_argument";
    case METAL_SDPA_UNSUPPORTED_DTYPE:
      return "unsupported_dtype";
    case METAL_SDPA_UNSUPPORTED:
      return "unsupported";
    case METAL_SDPA_DEVICE_NOT_FOUND:
      return "device_not_found";
    case METAL_SDPA_KERNEL_NOT_FOUND:
      return "kernel_not_found";
    case METAL_SDPA_SHADER_COMPILATION:
      return "shader_compilation";
    case METAL_SDPA_COMMAND_BUFFER:
      return "command_buffer";
    case METAL_SDPA_BUFFER_ALLOCATION:
      return "buffer_allocation";
    case METAL_SDPA_INTERRUPTED:
      return "interrupted";
    case METAL_SDPA_OUT_OF_MEMORY:
      return "out_of_memory";
    case METAL_SDPA_INTERNAL:
      return "internal";
  }
  return "unknown";
}

const char* metal_sdpa_last_message(void) { return metal_sdpa::capi::last_message.c_str(); }

const char* metal_sdpa_version(void) { return METAL_SDPA_VERSION; }
