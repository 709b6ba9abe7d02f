"""Low-level helpers: kernels dispatched by hand, and packed attention through encode_sdpa."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

import metal_sdpa
from arrays import DTYPES, bits
from metal_sdpa import Buffer, CommandEncoder, Device, DType, KernelRegistry, OpKind, SdpaParams

CORE_DTYPES = {"f32": DType.f32, "f16": DType.f16, "bf16": DType.bf16}
TILE_Q = 32


def params_block(params: SdpaParams) -> bytes:
    """The 32 bytes that the straightforward kernels take at buffer 4."""
    block = struct.pack(
        "<5IfII",
        params.n_heads,
        params.n_kv_heads,
        params.head_dim,
        params.seq_len,
        params.kv_seq_len,
        params.scale,
        params.kv_capacity or params.kv_seq_len,
        params.do_causal,
    )
    assert len(block) == 32
    return block


@dataclass
class Arena:
    """One allocation cut into slots of `width` f32, and a kernel that works on slots.

    The kernel is the straightforward attention with scores of 0: it writes the mean of the source
    slots to the target slot, which depends on the order of everything that touches them.
    """

    device: Device
    registry: KernelRegistry
    memory: Buffer
    width: int
    slots: int

    @classmethod
    def of(cls, device: Device, slots: int = 12, width: int = 8) -> Arena:
        memory = device.empty((slots, width), DType.f32)
        return cls(device, KernelRegistry(device), memory, width, slots)

    def fill(self, seed: int = 0) -> None:
        values = np.random.default_rng(seed).standard_normal((self.slots, self.width), np.float32)
        self.memory.numpy()[...] = values
        self.memory.numpy()[0] = 0  # slot 0: the query, all zero

    def contents(self) -> np.ndarray:
        return bits(self.memory.numpy()).copy()

    def view(self, slot: int, count: int = 1) -> Buffer:
        return self.memory.slice_view(slot * self.width * 4, count * self.width)

    def encode_mean(
        self,
        encoder: CommandEncoder,
        source: int,
        count: int,
        target: int,
        *,
        kind: OpKind | None = None,
        declared: bool = True,
        ranges: dict | None = None,
    ) -> None:
        """target = mean of slots source..source + count. Reads slot 0 too.

        `ranges`: other reads and writes than the true ones.
        """
        keys, out = self.view(source, count), self.view(target)
        if ranges is None:
            ranges = {}
            if declared:
                read = [(self.view(0), 0, self.width * 4), (keys, 0, count * self.width * 4)]
                ranges = {"reads": read, "writes": [(out, 0, self.width * 4)]}
        params = SdpaParams(1, 1, self.width, 1, count, 1.0, 0, False)
        if kind is not None:
            encoder.set_op_kind(kind)
        encoder.encode_threadgroups(
            self.registry.get_pipeline("sdpa"),
            [(0, self.view(0)), (1, keys), (2, keys), (3, out), (4, params_block(params))],
            (1, 1, 1),
            (TILE_Q, 1, 1),
            **ranges,
        )


@dataclass
class Attention:
    """Packed q, k, v and output on a device, with random values."""

    device: Device
    registry: KernelRegistry
    q: Buffer
    k: Buffer
    v: Buffer
    output: Buffer
    params: SdpaParams
    batch: int

    @classmethod
    def of(
        cls, device: Device, params: SdpaParams, batch: int = 1, dtype: str = "f32", seed: int = 0
    ) -> Attention:
        rng = np.random.default_rng(seed)
        capacity = params.kv_capacity or params.kv_seq_len
        queries = (batch, params.n_heads, params.seq_len, params.head_dim)
        keys = (batch, params.n_kv_heads, capacity, params.head_dim)

        def filled(shape: tuple[int, ...]) -> Buffer:
            buffer = device.empty(shape, CORE_DTYPES[dtype])
            buffer.numpy()[...] = rng.standard_normal(shape, np.float32).astype(DTYPES[dtype])
            return buffer

        output = device.empty(queries, CORE_DTYPES[dtype])
        registry = KernelRegistry(device)
        return cls(
            device, registry, filled(queries), filled(keys), filled(keys), output, params, batch
        )

    def encode(self, encoder: CommandEncoder, **changes: object) -> None:
        arguments = {
            name: changes.get(name, getattr(self, name))
            for name in ("registry", "device", "q", "k", "v", "output", "params")
        }
        metal_sdpa.encode_sdpa(
            encoder, **arguments, batch_size=changes.get("batch_size", self.batch)
        )

    def poison_output(self) -> np.ndarray:
        """Fills the output with bits that no result has; returns them."""
        raw = bits(self.output.numpy())
        raw.reshape(-1)[...] = 0xAB
        return raw.copy()

    def result(self) -> np.ndarray:
        """Bits of the output."""
        return bits(self.output.numpy()).copy()

    def direct(self, params: SdpaParams) -> np.ndarray:
        """Bits of a call by itself."""
        self.poison_output()
        encoder = self.device.command_encoder()
        self.encode(encoder, params=params)
        encoder.commit_and_wait()
        return self.result()
