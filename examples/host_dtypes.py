"""Numbers between NumPy's f32 and the dtype that a Buffer holds; NumPy has no bfloat16."""

from __future__ import annotations

import numpy as np

from metal_sdpa import Buffer

# How NumPy stores one element. bfloat16 stands in its bits.
STORAGE = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(np.uint16)}

# Half the distance from 1 to the next number, and the smallest number above 0.
UNIT_ROUNDOFF = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}
SMALLEST = {"f32": 2.0**-149, "f16": 2.0**-24, "bf16": 2.0**-133}


def host_view(buffer: Buffer, dtype: str) -> np.ndarray:
    """The buffer's memory as an array of STORAGE[dtype], without a copy."""
    return buffer.numpy().view(STORAGE[dtype])


def to_storage(x: np.ndarray, dtype: str) -> np.ndarray:
    """f32 rounded to nearest even."""
    if dtype != "bf16":
        return x.astype(STORAGE[dtype])
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_storage(x: np.ndarray, dtype: str) -> np.ndarray:
    """As f32, exactly."""
    if dtype != "bf16":
        return x.astype(np.float32)
    return (x.astype(np.uint32) << 16).view(np.float32)
