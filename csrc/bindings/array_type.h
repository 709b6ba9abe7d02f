// What is known of the type of an array: its framework and its fast way in.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "dlpack.h"

namespace metal_sdpa::python {

enum class Framework : std::uint8_t { numpy, torch, jax, mlx, other };

struct ArrayType {
  PyTypeObject* type = nullptr;
  Framework framework = Framework::other;
  const DLExchangeApi* exchange = nullptr;  ///< of DLPack 1.x; null: none
  const char* refusal = nullptr;            ///< why no array of the type is taken; null: some are

  /// Whether an array of the type is its memory and nothing else: NumPy's own.
  bool is_plain() const { return framework == Framework::numpy && refusal == nullptr; }
};

/// Looked up once a type; safe from any thread that may call Python.
ArrayType array_type_of(PyObject* object);

}  // namespace metal_sdpa::python
