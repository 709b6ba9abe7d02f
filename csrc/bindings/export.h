// Buffers go out as DLPack capsules.
#pragma once

#include <nanobind/nanobind.h>

#include "dlpack.h"
#include "metal_sdpa/buffer.h"

namespace metal_sdpa::python {

namespace nb = nanobind;

DLDataType dlpack_dtype(DType dtype) noexcept;

/// (device type, device id) of the buffer's memory.
nb::tuple dlpack_device(const Buffer& buffer);

/// A capsule over the buffer's memory, which stays alive as long as the consumer holds it.
/// BufferError where the consumer asks for what a buffer cannot give: a copy, another device, or
/// read-only memory before DLPack 1.0.
nb::object dlpack_capsule(const Buffer& buffer, nb::handle max_version, nb::handle dl_device,
                          nb::handle copy);

/// A new DLPack 1.x tensor over the buffer, owned by the caller.
DLManagedTensorVersioned* managed_tensor(const Buffer& buffer);

}  // namespace metal_sdpa::python
