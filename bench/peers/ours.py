"""Our own side: metal_sdpa.sdpa on the CPU device."""

from __future__ import annotations

import numpy as np

import metal_sdpa

from ..data import Inputs, aligned_empty
from ..shapes import Case
from .base import Bound, Peer


class Ours(Peer):
    name = "metal-sdpa"
    version = metal_sdpa.__version__
    features = frozenset({"window", "softcap", "alibi", "bias", "mask", "sinks"})

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        metal_sdpa.set_num_threads(threads)

    def variants(self, case: Case) -> list[str]:
        return [case.arrays]

    def bind(self, inputs: Inputs, variant: str) -> Bound:
        if variant == "torch":
            return self._bind_torch(inputs)
        out = aligned_empty(inputs.q.shape, inputs.q.dtype)
        calls = [self._call(inputs, inputs.q, k, v, out) for k, v in inputs.caches]
        return Bound(calls, lambda: out)

    def _bind_torch(self, inputs: Inputs) -> Bound:
        """Without `out`, as PyTorch's own call has none."""
        from .pytorch import to_numpy, to_torch

        q = to_torch(inputs.q)
        caches = [(to_torch(k), to_torch(v)) for k, v in inputs.caches]
        calls = [self._call(inputs, q, k, v, None) for k, v in caches]

        def output() -> np.ndarray:
            return to_numpy(calls[0]())

        return Bound(calls, output)

    @staticmethod
    def _call(inputs: Inputs, q, k, v, out):
        sdpa, causal, scale = metal_sdpa.sdpa, inputs.case.causal, inputs.scale
        options = Ours._features(inputs)

        def call():
            return sdpa(q, k, v, causal=causal, scale=scale, out=out, **options)

        return call

    @staticmethod
    def _features(inputs: Inputs) -> dict[str, object]:
        feature = inputs.case.feature
        options: dict[str, object] = {}
        if feature.window:
            options["window"] = feature.window
        if feature.softcap:
            options["softcap"] = feature.softcap
        if feature.alibi:
            options["alibi_slopes"] = inputs.slopes
        if feature.sinks:
            options["sinks"] = inputs.sinks
        if feature.bias:
            options["mask"] = inputs.bias
        if feature.mask:
            options["mask"] = inputs.seen
        return options
