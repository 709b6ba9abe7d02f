// The parts of the extension module, one concept a file; module.cpp calls them in order.
#pragma once

#include <nanobind/nanobind.h>

namespace metal_sdpa::python {

namespace nb = nanobind;

void bind_errors(nb::module_& module);
void bind_interrupts(nb::module_& module);
void bind_dtype(nb::module_& module);
void bind_buffer(nb::module_& module);
void bind_device(nb::module_& module);
void bind_registry(nb::module_& module);
void bind_encoder(nb::module_& module);
void bind_graph(nb::module_& module);
void bind_encode_sdpa(nb::module_& module);
void bind_problem(nb::module_& module);
void bind_functional(nb::module_& module);
void bind_prepared(nb::module_& module);
void bind_merge_states(nb::module_& module);
void bind_write_kv(nb::module_& module);
void bind_parameters(nb::module_& module);
void bind_supports(nb::module_& module);

}  // namespace metal_sdpa::python
