"""Attention as an inference engine calls it: encoded for a prompt, replayed for each new token."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from host_dtypes import from_storage, host_view, to_storage
from kv_cache import KvCache
from metal_sdpa import Buffer, Device, Graph, KernelRegistry, SdpaParams, encode_sdpa
from model import ModelConfig


@dataclass
class Attended:
    """One call as the kernels saw it, kept for float64_check.py."""

    layer: int
    q: np.ndarray  # f32 [n_heads, L, head_dim]
    out: np.ndarray


class FusedAttention:
    """model.Attention on a KV cache, by metal_sdpa."""

    def __init__(self, device: Device, config: ModelConfig, cache: KvCache) -> None:
        self.cache = cache
        self.seconds = 0.0  # spent in metal_sdpa: encoding, replaying, computing, waiting
        self.log: list[Attended] = []
        self._device = device
        self._config = config
        self._registry = KernelRegistry(device)
        self._operands: dict[int, tuple[Buffer, Buffer]] = {}
        self._decode_graphs = [self._record_decode(layer) for layer in range(config.n_layers)]

    def attend(self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        n_tokens = q.shape[1]
        self.cache.write(layer, k, v)
        q_buffer, out_buffer = self._q_and_out(n_tokens)
        host_view(q_buffer, self.cache.dtype)[0] = to_storage(q, self.cache.dtype)

        start = perf_counter()
        if n_tokens == 1:
            self._replay_decode(layer)
        else:
            self._prefill(layer, n_tokens)
        self.seconds += perf_counter() - start

        stored_q, out = self._read(q_buffer), self._read(out_buffer)
        self.log.append(Attended(layer, stored_q, out))
        return out

    def _prefill(self, layer: int, n_tokens: int) -> None:
        """All queries of a prompt, or of a later part of it, in one dispatch plan."""
        encoder = self._device.command_encoder()
        self._encode(encoder, layer, n_tokens, self.cache.length + n_tokens)
        encoder.commit_and_wait()

    def _record_decode(self, layer: int) -> Graph:
        """One query and one key; a replay takes any length up to the capacity."""
        encoder = self._device.command_encoder()
        encoder.begin_capture()
        self._encode(encoder, layer, n_tokens=1, kv_seq_len=1)
        return encoder.end_capture()

    def _replay_decode(self, layer: int) -> None:
        graph = self._decode_graphs[layer]
        graph.update(0, kv_seq_len=self.cache.length + 1)
        encoder = self._device.command_encoder()
        graph.replay(encoder)
        encoder.commit_and_wait()

    def _encode(self, encoder, layer: int, n_tokens: int, kv_seq_len: int) -> None:
        params = SdpaParams(
            n_heads=self._config.n_heads,
            n_kv_heads=self._config.n_kv_heads,
            head_dim=self._config.head_dim,
            seq_len=n_tokens,
            kv_seq_len=kv_seq_len,
            kv_capacity=self.cache.capacity,
            scale=self._config.scale,
            do_causal=True,
        )
        q, out = self._q_and_out(n_tokens)
        k, v = self.cache.keys[layer], self.cache.values[layer]
        encode_sdpa(encoder, self._registry, self._device, q, k, v, out, params, batch_size=1)

    def _q_and_out(self, n_tokens: int) -> tuple[Buffer, Buffer]:
        """Buffers [1, n_heads, n_tokens, head_dim], the same ones for every layer and step."""
        if n_tokens not in self._operands:
            shape = (1, self._config.n_heads, n_tokens, self._config.head_dim)
            q, out = (self._device.empty(shape, self.cache.dtype) for _ in range(2))
            self._operands[n_tokens] = (q, out)
        return self._operands[n_tokens]

    def _read(self, buffer: Buffer) -> np.ndarray:
        """A copy, as f32 [n_heads, L, head_dim]."""
        return from_storage(host_view(buffer, self.cache.dtype)[0], self.cache.dtype)
