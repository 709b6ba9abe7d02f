// Devices and threads, for C.
#include "metal_sdpa/device.h"

#include "capi/guard.h"
#include "capi/handles.h"
#include "metal_sdpa/support.h"

using namespace metal_sdpa;
using namespace metal_sdpa::capi;

metal_sdpa_status metal_sdpa_device_options_init(metal_sdpa_device_options* options,
                                                 size_t struct_size) {
  return guarded([&] { init_struct("device_options_init", "options", options, struct_size); });
}

metal_sdpa_status metal_sdpa_device_open(const char* kind, const metal_sdpa_device_options* options,
                                         metal_sdpa_device** device) {
  constexpr const char* kCall = "device_open";
  return guarded([&] {
    clear_place(kCall, "device", device);
    DeviceOptions wanted;
    if (options != nullptr) {
      const metal_sdpa_device_options given = read_struct(kCall, "options", options);
      wanted.threads = given.threads;
      if (given.isa != nullptr) wanted.isa = given.isa;
    }
    *device = new metal_sdpa_device{Device(kind == nullptr ? "auto" : kind, wanted)};
  });
}

void metal_sdpa_device_close(metal_sdpa_device* device) { delete device; }

metal_sdpa_status metal_sdpa_device_describe(const metal_sdpa_device* device,
                                             metal_sdpa_device_info* info, size_t struct_size) {
  constexpr const char* kCall = "device_describe";
  return guarded([&] {
    const Device& described = device_of(kCall, device);
    metal_sdpa_device_info filled{};
    filled.kind = device_kind_name(described.kind());
    filled.name = described.name().c_str();
    filled.max_buffer_bytes = described.limits().max_buffer_bytes;
    filled.max_head_dim = described.limits().max_head_dim;
    fill_struct(kCall, "info", filled, info, struct_size);
  });
}

metal_sdpa_status metal_sdpa_device_require(const metal_sdpa_device* device, const char* feature) {
  constexpr const char* kCall = "device_require";
  return guarded([&] {
    const Device& asked = device_of(kCall, device);
    require_given(kCall, "feature", feature);
    require_feature(kCall, asked.kind(), feature);
  });
}

metal_sdpa_status metal_sdpa_device_synchronize(const metal_sdpa_device* device) {
  return guarded([&] { device_of("device_synchronize", device).synchronize(); });
}

int32_t metal_sdpa_get_num_threads(void) { return get_num_threads(); }

metal_sdpa_status metal_sdpa_set_num_threads(int32_t threads) {
  return guarded([&] { set_num_threads(threads); });
}

void metal_sdpa_shutdown(void) { metal_sdpa::shutdown(); }
