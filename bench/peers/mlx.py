"""MLX on the CPU: mlx.core.fast.scaled_dot_product_attention."""

from __future__ import annotations

from importlib.metadata import version

import mlx.core as mx
import numpy as np

from ..data import Inputs
from ..shapes import Case
from .base import Bound, Peer, needs_mask


def to_mlx(array: np.ndarray) -> mx.array:
    if array.dtype.name == "bfloat16":
        return mx.array(array.view(np.uint16)).view(mx.bfloat16)
    return mx.array(array)


class Mlx(Peer):
    name = "MLX"
    version = version("mlx")

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        mx.set_default_device(mx.cpu)

    def variants(self, case: Case) -> list[str]:
        return ["fast"]

    def bind(self, inputs: Inputs, variant: str) -> Bound:
        q = to_mlx(inputs.q)
        mask = "causal" if needs_mask(inputs.case) else None
        latest: list[mx.array] = [q]

        def call_with(k: mx.array, v: mx.array):
            mx.eval(k, v)

            def call() -> None:
                latest[0] = mx.fast.scaled_dot_product_attention(
                    q, k, v, scale=inputs.scale, mask=mask
                )
                mx.eval(latest[0])

            return call

        calls = [call_with(to_mlx(k), to_mlx(v)) for k, v in inputs.caches]
        return Bound(calls, lambda: np.array(latest[0].astype(mx.float32)))
