"""torch tensors of one sequence, and what they must give within the bounds of accuracy.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from accuracy import lse_errors, output_errors
from oracle import attention

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def tensor(rng: np.random.Generator, dtype: str, *shape: int) -> Any:
    """Numbers whose softmax is spread over the keys."""
    import torch

    return torch.from_numpy(rng.standard_normal(shape)).to(getattr(torch, DTYPES[dtype]))


def numbers(x: Any) -> np.ndarray:
    return x.double().numpy()


def check_sequence(
    got: tuple[Any, Any], q: Any, k: Any, v: Any, dtype: str, *, leftpad: int = 0, **options: Any
) -> None:
    """got: out [L, Hq, Dv] and lse [Hq, L]; q [L, Hq, D], k [S, Hkv, D], v [S, Hkv, Dv]; `options`
    as flash-attn names them. The last query meets the last key."""
    heads_first = [numbers(x).transpose(1, 0, 2)[None] for x in (q, k, v)]
    slopes = options.get("alibi_slopes")
    sinks = options.get("s_aux", options.get("learnable_sink"))
    reference = attention(
        *heads_first,
        scale=options.get("softmax_scale") or q.shape[-1] ** -0.5,
        causal=options.get("causal", False),
        q_starts=np.array([len(k) - len(q)]),
        kv_lengths=np.array([len(k)]),
        kv_starts=np.array([leftpad]),
        window=tuple(options.get("window_size", (-1, -1))),
        softcap=options.get("softcap") or None,
        slopes=None if slopes is None else numbers(slopes)[None],
        sinks=None if sinks is None else numbers(sinks),
    )
    out, lse = got
    assert (out.shape, lse.shape) == ((*q.shape[:2], v.shape[-1]), (q.shape[1], len(q)))
    errors = output_errors(numbers(out).transpose(1, 0, 2)[None], reference, dtype)
    assert errors.max(initial=0) <= 1
    assert lse_errors(numbers(lse)[None].astype(np.float32), reference).max(initial=0) <= 1
