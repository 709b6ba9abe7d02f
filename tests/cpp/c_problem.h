// Problems of C++ as the C interface takes them, and handles that are given back.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "capi/handles.h"
#include "metal_sdpa/c.h"
#include "metal_sdpa/metal_sdpa.h"

namespace metal_sdpa::test {

struct GiveBack {
  void operator()(metal_sdpa_device* handle) const { metal_sdpa_device_close(handle); }
  void operator()(metal_sdpa_buffer* handle) const { metal_sdpa_buffer_release(handle); }
  void operator()(metal_sdpa_encoder* handle) const { metal_sdpa_encoder_close(handle); }
};
using DeviceHandle = std::unique_ptr<metal_sdpa_device, GiveBack>;
using BufferHandle = std::unique_ptr<metal_sdpa_buffer, GiveBack>;
using EncoderHandle = std::unique_ptr<metal_sdpa_encoder, GiveBack>;

/// A device opened through the C interface.
DeviceHandle open_device(const char* kind);

/// The very Buffer as a handle; an invalid one as NULL.
BufferHandle handle_of(const Buffer& buffer);

/// A C problem and all that it points to.
struct CProblem {
  explicit CProblem(const SdpaProblem& problem);
  CProblem(const CProblem&) = delete;
  CProblem& operator=(const CProblem&) = delete;

  metal_sdpa_problem c;
  SdpaProblem from;
  metal_sdpa_mask_layout mask;
  metal_sdpa_head_layout alibi_slopes, sinks;
  metal_sdpa_page_table pages;
};

/// C operands and their handles.
struct COperands {
  COperands(const SdpaOperands& operands, const SdpaProblem& problem);
  COperands(const COperands&) = delete;
  COperands& operator=(const COperands&) = delete;

  metal_sdpa_operands c;
  std::vector<BufferHandle> handles;
};

}  // namespace metal_sdpa::test
