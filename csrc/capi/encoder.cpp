// Many calls in one command buffer, for C.
#include "metal_sdpa/encoder.h"

#include "capi/guard.h"
#include "capi/handles.h"
#include "capi/problem.h"
#include "core/registry.h"

using namespace metal_sdpa;
using namespace metal_sdpa::capi;

metal_sdpa_status metal_sdpa_encoder_open(const metal_sdpa_device* device,
                                          metal_sdpa_encoder** encoder) {
  constexpr const char* kCall = "encoder_open";
  return guarded([&] {
    clear_place(kCall, "encoder", encoder);
    *encoder = new metal_sdpa_encoder{CommandEncoder(device_of(kCall, device))};
  });
}

metal_sdpa_status metal_sdpa_encode_sdpa(metal_sdpa_encoder* encoder,
                                         const metal_sdpa_problem* problem,
                                         const metal_sdpa_operands* operands) {
  constexpr const char* kCall = "encode_sdpa";
  return guarded([&] {
    CommandEncoder& into = encoder_of(kCall, encoder);
    const auto given = read_sdpa(kCall, problem, operands);
    const Device device = into.device();
    encode_sdpa(into, default_registry(device), device, given.operands, given.problem);
  });
}

metal_sdpa_status metal_sdpa_encode_prepared(metal_sdpa_encoder* encoder,
                                             const metal_sdpa_prepared* prepared,
                                             const metal_sdpa_operands* operands,
                                             const metal_sdpa_buffer* scratch) {
  constexpr const char* kCall = "encode_prepared";
  return guarded([&] {
    CommandEncoder& into = encoder_of(kCall, encoder);
    const metal_sdpa_prepared& given = prepared_of(kCall, prepared);
    const SdpaOperands memory = read_operands(kCall, operands, given.used);
    given.prepared.encode(into, default_registry(into.device()), memory, operand_of(scratch));
  });
}

metal_sdpa_status metal_sdpa_encode_write_kv(metal_sdpa_encoder* encoder,
                                             const metal_sdpa_write_kv_problem* problem,
                                             const metal_sdpa_write_kv_operands* operands) {
  constexpr const char* kCall = "encode_write_kv";
  return guarded([&] {
    CommandEncoder& into = encoder_of(kCall, encoder);
    const auto given = read_write_kv(kCall, problem, operands);
    const Device device = into.device();
    encode_write_kv(into, default_registry(device), device, given.operands, given.problem);
  });
}

metal_sdpa_status metal_sdpa_encode_merge_states(metal_sdpa_encoder* encoder,
                                                 const metal_sdpa_merge_problem* problem,
                                                 const metal_sdpa_merge_operands* operands) {
  constexpr const char* kCall = "encode_merge_states";
  return guarded([&] {
    CommandEncoder& into = encoder_of(kCall, encoder);
    const auto given = read_merge(kCall, problem, operands);
    const Device device = into.device();
    encode_merge_states(into, default_registry(device), device, given.operands, given.problem);
  });
}

metal_sdpa_status metal_sdpa_encoder_commit(metal_sdpa_encoder* encoder) {
  return guarded([&] { encoder_of("encoder_commit", encoder).commit(); });
}

metal_sdpa_status metal_sdpa_encoder_wait(metal_sdpa_encoder* encoder) {
  return guarded([&] { encoder_of("encoder_wait", encoder).wait_until_completed(); });
}

void metal_sdpa_encoder_close(metal_sdpa_encoder* encoder) { delete encoder; }
