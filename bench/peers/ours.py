"""Our own side: metal_sdpa.sdpa on the CPU device."""

from __future__ import annotations

import numpy as np

import metal_sdpa

from ..data import Inputs, aligned_empty
from ..shapes import Case
from .base import Bound, Peer


def in_pages(page: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
    """k and v [B, Hkv, S, D] as pages [n, page, Hkv, D] in an order of chance, and the table."""
    batch, heads, n_keys, _ = k.shape
    per_sequence = -(-n_keys // page)
    order = np.random.default_rng(0).permutation(batch * per_sequence)
    table = order.reshape(batch, per_sequence).astype(np.int32)
    found = []
    for tensor in (k, v):
        pages = aligned_empty((table.size, page, heads, tensor.shape[3]), tensor.dtype)
        for b, j in np.ndindex(table.shape):
            rows = tensor[b, :, j * page : (j + 1) * page].transpose(1, 0, 2)
            pages[table[b, j], : len(rows)] = rows
        found.append(pages)
    return table, *found


class Ours(Peer):
    name = "metal-sdpa"
    version = metal_sdpa.__version__
    features = frozenset({"window", "softcap", "alibi", "bias", "mask", "sinks", "pages"})

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        metal_sdpa.set_num_threads(threads)

    def variants(self, case: Case) -> list[str]:
        return [case.arrays]

    def bind(self, inputs: Inputs, variant: str) -> Bound:
        if variant == "torch":
            return self._bind_torch(inputs)
        out = aligned_empty(inputs.q.shape, inputs.q.dtype)
        bind = self._paged_call if inputs.case.feature.page else self._call
        calls = [bind(inputs, inputs.q, k, v, out) for k, v in inputs.caches]
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
    def _paged_call(inputs: Inputs, q, k, v, out):
        page = inputs.case.feature.page
        table, k_pages, v_pages = in_pages(page, k, v)
        lengths = np.full(len(table), k.shape[2], np.int64)
        paged, causal, scale = metal_sdpa.sdpa_paged, inputs.case.causal, inputs.scale

        def call():
            return paged(q, k_pages, v_pages, table, lengths, causal=causal, scale=scale, out=out)

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
