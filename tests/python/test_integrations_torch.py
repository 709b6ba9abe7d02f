"""scaled_dot_product_attention with torch's meaning: torch.testing's own samples, and what else."""

from __future__ import annotations

from typing import Any

import pytest

import metal_sdpa

pytestmark = pytest.mark.frameworks

DTYPES = ("float32", "float16", "bfloat16")


def samples(name: str, dtype: str) -> list[Any]:
    import torch
    from torch.testing._internal.common_methods_invocations import op_db

    torch.manual_seed(0)
    op = next(op for op in op_db if op.name == name)
    return list(op.sample_inputs("cpu", getattr(torch, dtype), requires_grad=False))


def close(got: Any, wanted: Any, dtype: str) -> None:
    import torch

    # Scores of the samples reach some hundreds, with an error in f32 of that many roundings.
    tolerance = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
    assert got.shape == wanted.shape
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_of_scaled_dot_product_attention(dtype: str) -> None:
    import torch

    from metal_sdpa.integrations.torch import scaled_dot_product_attention

    compared = 0
    for sample in samples("nn.functional.scaled_dot_product_attention", dtype):
        arguments = (sample.input, *sample.args)
        if sample.kwargs.get("dropout_p"):
            with pytest.raises(metal_sdpa.Unsupported, match=r"dropout_p: 0\.5, takes 0"):
                scaled_dot_product_attention(*arguments, **sample.kwargs)
            continue
        got = scaled_dot_product_attention(*arguments, **sample.kwargs)
        reference = torch.nn.functional.scaled_dot_product_attention
        close(got, reference(*arguments, **sample.kwargs), dtype)
        compared += 1
    assert compared > 10


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_of_multi_head_attention_forward(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """need_weights=False is the way through scaled_dot_product_attention."""
    import torch

    from metal_sdpa.integrations.torch import scaled_dot_product_attention

    calls = []

    def counted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(keywords)
        return scaled_dot_product_attention(*arguments, **keywords)

    forward = torch.nn.functional.multi_head_attention_forward
    for sample in samples("nn.functional.multi_head_attention_forward", dtype):
        arguments = (sample.input, *sample.args)
        keywords = sample.kwargs | {"need_weights": False}
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
            if keywords["training"]:  # with dropout
                with pytest.raises(metal_sdpa.Unsupported, match=r"dropout_p: 0\.5, takes 0"):
                    forward(*arguments, **keywords)
                continue
            got, weights = forward(*arguments, **keywords)
        wanted, _ = forward(*arguments, **keywords)
        assert weights is None
        close(got, wanted, dtype)
    assert len(calls) > 10


def test_torchs_meaning_of_arguments() -> None:
    import torch

    from metal_sdpa.integrations.torch import scaled_dot_product_attention as ours

    theirs = torch.nn.functional.scaled_dot_product_attention
    torch.manual_seed(1)
    q, k, v = torch.randn(2, 6, 5, 16), torch.randn(2, 3, 9, 16), torch.randn(2, 3, 9, 8)
    full_k, full_v = (x.repeat_interleave(2, 1) for x in (k, v))
    mask = torch.rand(5, 9) < 0.5
    mask[2] = False  # a row that sees no key
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((q, full_k, full_v), {}),
        ((q, full_k, full_v), {"is_causal": True}),
        ((q, k, v), {"enable_gqa": True, "is_causal": True}),
        ((q, k, v), {"enable_gqa": True, "attn_mask": mask}),
        ((q, full_k, full_v), {"attn_mask": mask[None, None].expand(2, 6, 5, 9)}),
        ((q, full_k, full_v), {"attn_mask": torch.randn(2, 1, 5, 9), "scale": 0.3}),
        ((q, full_k, full_v), {"attn_mask": torch.randn(5, 1).expand(5, 9)}),
        ((q[:, :1], full_k, full_v), {}),  # heads broadcast
        ((q, full_k[:1], full_v[:1]), {}),
        ((q[0], full_k[0], full_v[0]), {"attn_mask": mask}),
        ((q[0, 0], k[0, 0], v[0, 0]), {"is_causal": True}),
        ((q[None], full_k[None], full_v[None]), {"is_causal": True}),
        ((q.mT.contiguous().mT, full_k, full_v), {}),  # the last dimension is not contiguous
        ((q, full_k.mT.contiguous().mT, full_v), {"is_causal": True}),
        ((q, k[:, :1], v[:, :1]), {}),  # one head of keys for all
        ((q, k[:, :1], v[:, :1]), {"enable_gqa": True, "is_causal": True}),
    ]
    for arguments, keywords in calls:
        close(ours(*arguments, **keywords), theirs(*arguments, **keywords), "float32")


@pytest.mark.parametrize("shape", [(), (7,), (1, 7), (5, 1), (2, 1, 5, 7), (3, 1, 4, 5, 7)])
def test_masks_of_any_rank_beside_five_dimensions(shape: tuple[int, ...]) -> None:
    import torch

    from metal_sdpa.integrations.torch import scaled_dot_product_attention

    torch.manual_seed(5)
    q, k, v = (torch.randn(3, 2, 4, n, 8) for n in (5, 7, 7))
    mask = torch.randn(shape)
    got = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_what_is_refused() -> None:
    import torch

    from metal_sdpa.integrations.torch import scaled_dot_product_attention as ours

    q = torch.ones(1, 2, 3, 8)
    with pytest.raises(metal_sdpa.InvalidArgument, match="attn_mask: is given, but is_causal"):
        ours(q, q, q, attn_mask=torch.ones(3, 3), is_causal=True)
    with pytest.raises(metal_sdpa.InvalidArgument, match="takes shapes that broadcast"):
        ours(q, torch.ones(1, 3, 3, 8), q)
    with pytest.raises(metal_sdpa.InvalidArgument, match="takes shapes that broadcast"):
        ours(torch.ones(1, 4, 3, 8), q, q)  # fewer heads, and no enable_gqa
    with pytest.raises(metal_sdpa.Unsupported, match="dropout_p"):
        ours(q, q, q, dropout_p=0.5)
    with pytest.raises(metal_sdpa.InvalidArgument, match=r"value: shape \(8,\), takes 2"):
        ours(q, q, torch.ones(8))
    with pytest.raises(metal_sdpa.Unsupported, match="q: requires gradients"):
        ours(q.clone().requires_grad_(), q, q)
    with pytest.raises(metal_sdpa.UnsupportedDType, match=r"q: dtype torch\.float64"):
        ours(*(x.double() for x in (q, q, q)))
    with pytest.raises(metal_sdpa.UnsupportedDType, match="mask: dtype i64"):
        ours(q, q, q, attn_mask=torch.ones(3, 3, dtype=torch.int64))


def test_nothing_is_imported_unasked() -> None:
    import subprocess
    import sys

    code = "import metal_sdpa, sys; assert not {'torch', 'onnx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
