"""varlen_attn against attention in float64."""

from __future__ import annotations

from typing import Any

import pytest

import metal_sdpa

pytestmark = pytest.mark.frameworks


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (6, 0), (4, 3), (-1, 2), (5, -1)])
@pytest.mark.parametrize("kind", ["packed", "seqused", "paged", "into out"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_varlen_attn(window: tuple[int, int], kind: str, dtype: str) -> None:
    import numpy as np
    import torch
    from torch.nn.attention.varlen import AuxRequest

    from metal_sdpa.integrations.torch import varlen_attn, varlen_attn_out
    from sequences import check_sequence, tensor

    rng = np.random.default_rng(13)
    n_queries, n_keys, used = [3, 0, 17, 1], [3, 5, 40, 33], [3, 5, 40, 33]
    ends_q, ends_k = (
        torch.tensor([0, *np.cumsum(n)], dtype=torch.int32) for n in (n_queries, n_keys)
    )
    q = tensor(rng, dtype, sum(n_queries), 4, 32)
    keys, values = (tensor(rng, dtype, sum(n_keys), 2, 32) for _ in range(2))
    k, v = keys, values
    options: dict[str, Any] = {"window_size": window, "enable_gqa": True, "scale": 0.3}
    if kind in ("seqused", "paged"):
        used = [2, 5, 31, 20]
        options["seqused_k"] = torch.tensor(used, dtype=torch.int32)
    if kind == "paged":
        table = torch.from_numpy(rng.permutation(12).reshape(4, 3)).int()
        k, v = (torch.full((12, 16, 2, 32), torch.nan, dtype=q.dtype) for _ in range(2))
        for b in range(4):
            for j in range(used[b]):
                place = table[b, j // 16], j % 16
                k[place], v[place] = keys[ends_k[b] + j], values[ends_k[b] + j]
        options["block_table"] = table
    arguments = (q, k, v, ends_q, None if kind == "paged" else ends_k, 17, 40)
    options["return_aux"] = AuxRequest(lse=True)
    if kind == "into out":
        own = torch.empty_like(q)
        out, lse = varlen_attn_out(own, *arguments, **options)
        assert out is own
    else:
        out, lse = varlen_attn(*arguments, **options)
        plain = varlen_attn(*arguments, **options | {"return_aux": None, "num_splits": 1})
        assert plain.equal(out)
    for b in range(4):
        rows = slice(ends_q[b], ends_q[b + 1])
        begin = int(ends_k[b])
        sequence = (x[begin : begin + used[b]] for x in (keys, values))
        named = {"window_size": window, "softmax_scale": 0.3}
        check_sequence((out[rows], lse[:, rows]), q[rows], *sequence, dtype, **named)


def test_varlen_attn_has_torchs_arguments() -> None:
    import inspect

    import torch
    from torch.nn.attention import varlen

    from metal_sdpa.integrations import torch as ours

    for name in ("varlen_attn", "varlen_attn_out"):
        mine, theirs = (inspect.signature(getattr(m, name)).parameters for m in (ours, varlen))
        assert [(p.name, p.kind, p.default) for p in mine.values()] == [
            (p.name, p.kind, p.default) for p in theirs.values()
        ]
    q, k = torch.ones(3, 4, 8), torch.ones(3, 2, 8)
    ends = torch.tensor([0, 3])
    with pytest.raises(ValueError, match="enable_gqa"):
        ours.varlen_attn(q, k, k, ends, ends, 3, 3)
    with pytest.raises(ValueError, match="head"):
        ours.varlen_attn(q, k[:, [0, 1, 0]], k[:, [0, 1, 0]], ends, ends, 3, 3, enable_gqa=True)
    with pytest.raises(ValueError, match="seqused_k: is None"):
        ours.varlen_attn(q, q[None], q[None], ends, None, 3, 3, block_table=ends[None, :1])
    with pytest.raises(ValueError, match="cu_seq_k: is None"):
        ours.varlen_attn(q, q, q, ends, None, 3, 3)
    with pytest.raises(metal_sdpa.Unsupported, match="requires gradients"):
        ours.varlen_attn(q.requires_grad_(), q, q, ends, ends, 3, 3)
