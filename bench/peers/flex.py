"""PyTorch's FlexAttention, compiled for the CPU: a kernel made for each mask and score rule."""

from __future__ import annotations

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from ..data import Inputs
from ..features import BLOCKS
from ..shapes import Case
from .base import Bound, Peer, UnsupportedCaseError
from .pytorch import to_numpy, to_torch


def mask_rule(case: Case):
    """mask_mod(b, h, query, key) of a case, or None where all see all."""
    offset, S, feature = case.S - case.L, case.S, case.feature
    is_causal = (case.causal and case.L > 1) or feature.mask == "causal"
    if not (is_causal or feature.window or feature.mask == "blocks"):
        return None

    def rule(b, h, query, key):
        seen = key >= 0
        if is_causal:
            seen = seen & (key <= query + offset)
        if feature.window:
            seen = seen & (key > query + offset - feature.window)
        if feature.mask == "blocks":
            seen = seen & ((query + offset) * BLOCKS // S == key * BLOCKS // S)
        return seen

    return rule


def score_rule(inputs: Inputs):
    """score_mod(score, b, h, query, key) of a case, or None."""
    case = inputs.case
    cap, offset = case.feature.softcap, case.S - case.L
    if cap:
        return lambda score, b, h, query, key: cap * torch.tanh(score / cap)
    if inputs.slopes is not None:
        slopes = torch.from_numpy(inputs.slopes)
        return lambda score, b, h, query, key: score - slopes[h] * (query + offset - key).abs()
    if inputs.bias is not None:
        bias = torch.from_numpy(inputs.bias)
        return lambda score, b, h, query, key: score + bias[query, key]
    return None


class Flex(Peer):
    name = "FlexAttention"
    version = torch.__version__
    features = frozenset({"window", "softcap", "alibi", "bias", "mask"})

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)

    def variants(self, case: Case) -> list[str]:
        if not case.feature.needs:
            raise UnsupportedCaseError("compiled for cases with features alone")
        return ["compiled"]

    def bind(self, inputs: Inputs, variant: str) -> Bound:
        case = inputs.case
        torch._dynamo.reset()
        compiled = torch.compile(flex_attention)
        rule = mask_rule(case)
        block_mask = None
        if rule is not None:
            block_mask = create_block_mask(rule, None, None, case.L, case.S, device="cpu")
        options = {
            "score_mod": score_rule(inputs),
            "block_mask": block_mask,
            "scale": inputs.scale,
            "enable_gqa": case.group > 1,
        }
        q = to_torch(inputs.q)
        latest: list[torch.Tensor] = [q]

        def call_with(k: torch.Tensor, v: torch.Tensor):
            def call() -> None:
                latest[0] = compiled(q, k, v, **options)

            return call

        calls = [call_with(to_torch(k), to_torch(v)) for k, v in inputs.caches]
        calls[0]()
        return Bound(calls, lambda: to_numpy(latest[0]))
