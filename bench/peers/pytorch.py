"""PyTorch: torch.nn.functional.scaled_dot_product_attention."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from ..data import Inputs
from ..shapes import Case
from .base import Bound, Peer, fold_queries, folded_mask, needs_mask


def to_torch(array: np.ndarray) -> torch.Tensor:
    """The same memory as a tensor; NumPy's bfloat16 goes through its bits."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().numpy()


def feature_mask(inputs: Inputs, dtype: torch.dtype) -> torch.Tensor:
    """Everything in one mask, as the operator takes it: boolean, or added in q's dtype."""
    seen = torch.from_numpy(inputs.seen)
    if not inputs.case.feature.needs & {"alibi", "bias"}:
        return seen
    bias = torch.from_numpy(inputs.whole_bias()).to(dtype)
    return bias.masked_fill(~seen, float("-inf"))[None]


class PyTorch(Peer):
    name = "PyTorch"
    version = torch.__version__
    features = frozenset({"window", "alibi", "bias", "mask"})

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)

    def variants(self, case: Case) -> list[str]:
        variants = ["gqa" if case.group > 1 else "plain"]
        if case.group > 1 and case.L <= 64 and not case.feature.needs:
            variants.append("folded")
        return variants

    def bind(self, inputs: Inputs, variant: str) -> Bound:
        case = inputs.case
        folded = variant == "folded"
        q = to_torch(fold_queries(inputs.q, case.Hkv) if folded else inputs.q)
        # is_causal aligns the first query with the first key, so it fits L = S only.
        is_causal = needs_mask(case) and case.L == case.S and not folded and not case.feature.needs
        mask = None
        if case.feature.needs:
            mask = feature_mask(inputs, q.dtype)
        elif needs_mask(case) and not is_causal:
            seen = folded_mask(case) if folded else folded_mask(case)[: case.L]
            mask = torch.zeros(seen.shape, dtype=q.dtype)
            mask.masked_fill_(torch.from_numpy(~seen), float("-inf"))
        options = {"attn_mask": mask, "is_causal": is_causal, "scale": inputs.scale}
        if variant == "gqa":
            options["enable_gqa"] = True
        latest: list[torch.Tensor] = [q]

        def call_with(k: torch.Tensor, v: torch.Tensor):
            def call() -> None:
                latest[0] = scaled_dot_product_attention(q, k, v, **options)

            return call

        calls = [call_with(to_torch(k), to_torch(v)) for k, v in inputs.caches]
        return Bound(calls, lambda: to_numpy(latest[0]).reshape(inputs.q.shape))
