// The extension module metal_sdpa._core.
#include "bindings.h"
#include "metal_sdpa/version.h"

#ifndef METAL_SDPA_LEAK_WARNINGS
#define METAL_SDPA_LEAK_WARNINGS 0
#endif

NB_MODULE(_core, module) {
  using namespace metal_sdpa::python;
  nb::set_leak_warnings(METAL_SDPA_LEAK_WARNINGS != 0);
  module.attr("__version__") = METAL_SDPA_VERSION;
  bind_errors(module);
  bind_interrupts(module);
  bind_dtype(module);
  bind_buffer(module);
  bind_device(module);
  bind_registry(module);
  bind_encoder(module);
  bind_problem(module);
  bind_graph(module);
  bind_encode_sdpa(module);
  bind_functional(module);
  bind_prepared(module);
  bind_merge_states(module);
  bind_write_kv(module);
  bind_parameters(module);
  bind_supports(module);
}
