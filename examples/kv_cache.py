"""The keys and values of every token so far, in device memory of a fixed capacity."""

from __future__ import annotations

import numpy as np

from host_dtypes import from_storage, host_view, to_storage
from metal_sdpa import Buffer, Device
from model import ModelConfig


class KvCache:
    """For each layer k and v [1, n_kv_heads, capacity, head_dim]; slots 0 to length - 1 are in use.

    A key is stored with its position's rotation, so what is written once never changes.
    """

    def __init__(self, device: Device, config: ModelConfig, capacity: int, dtype: str) -> None:
        self.capacity = capacity
        self.dtype = dtype
        self.length = 0
        shape = (1, config.n_kv_heads, capacity, config.head_dim)
        self.keys = [device.empty(shape, dtype) for _ in range(config.n_layers)]
        self.values = [device.empty(shape, dtype) for _ in range(config.n_layers)]
        # An engine's free slots hold leftovers. NaN is the worst of them, and must not matter.
        for buffer in self.keys + self.values:
            host_view(buffer, dtype)[:] = to_storage(np.float32([np.nan]), dtype)

    def write(self, layer: int, k: np.ndarray, v: np.ndarray) -> None:
        """Stores k and v f32 [n_kv_heads, L, head_dim] in the L slots after the last one in use."""
        slots = slice(self.length, self.length + k.shape[1])
        if slots.stop > self.capacity:
            raise ValueError(f"the KV cache holds {self.capacity} tokens, but got {slots.stop}")
        host_view(self.keys[layer], self.dtype)[0, :, slots] = to_storage(k, self.dtype)
        host_view(self.values[layer], self.dtype)[0, :, slots] = to_storage(v, self.dtype)

    def advance(self, n_tokens: int) -> None:
        """Takes the slots into use that every layer has written."""
        self.length += n_tokens

    def read(self, buffer: Buffer) -> np.ndarray:
        """The slots in use of one of the buffers, f32 [n_kv_heads, length, head_dim]."""
        return from_storage(host_view(buffer, self.dtype)[0, :, : self.length], self.dtype)
