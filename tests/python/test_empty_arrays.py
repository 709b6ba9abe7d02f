"""Arrays of size zero: no sequences, no queries or no keys; heads and widths are never none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import metal_sdpa
from arrays import DTYPES
from metal_sdpa import Device, InvalidArgument, SdpaParams, plan, sdpa

SIZES = [(0, 3, 5), (2, 0, 5), (2, 3, 0), (0, 0, 5), (0, 3, 0), (2, 0, 0), (0, 0, 0)]


def tensors(
    B: int, L: int, S: int, make: Callable[[tuple[int, ...]], Any] = np.ones
) -> tuple[Any, Any, Any]:
    """q, k and v of 4 and 2 heads, D 8 and Dv 16."""
    return make((B, 4, L, 8)), make((B, 2, S, 8)), make((B, 2, S, 16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("B", "L", "S"), SIZES)
def test_rows_that_see_nothing(
    device: Device, B: int, L: int, S: int, causal: bool, dtype: str
) -> None:
    q, k, v = (x.astype(DTYPES[dtype]) for x in tensors(B, L, S))
    out, lse = sdpa(q, k, v, causal=causal, return_lse=True, device=device)
    assert out.shape == (B, 4, L, 16)
    assert lse.shape == (B, 4, L)
    assert out.dtype == q.dtype
    assert not out.any()
    assert (lse == -np.inf).all()
    given = np.full((B, 4, L, 16), np.nan, q.dtype)
    lengths = {"kv_lengths": [0] * B, "q_start": [3] * B}
    assert sdpa(q, k, v, causal=causal, out=given, **lengths, device=device) is given
    assert not given.any()


def test_the_plan_says_so(device: Device) -> None:
    assert plan(*map(np.float32, tensors(0, 3, 5)), device=device).startswith("nothing to run")
    assert plan(*map(np.float32, tensors(2, 0, 5)), device=device).startswith("nothing to run")
    assert plan(*map(np.float32, tensors(2, 3, 0)), device=device).startswith("1. sdpa")


@pytest.mark.frameworks
@pytest.mark.parametrize("framework", ["torch", "jax", "mlx"])
@pytest.mark.parametrize(("B", "L", "S"), SIZES)
def test_in_every_framework(framework: str, B: int, L: int, S: int) -> None:
    import jax.numpy as jnp
    import mlx.core as mx
    import torch

    make = {"torch": torch.ones, "jax": jnp.ones, "mlx": mx.ones}[framework]
    q, k, v = tensors(B, L, S, make)
    out, lse = sdpa(q, k, v, return_lse=True)
    assert type(out) is type(lse) is type(q)
    assert tuple(out.shape) == (B, 4, L, 16)
    assert tuple(lse.shape) == (B, 4, L)
    assert out.tolist() == np.zeros((B, 4, L, 16)).tolist()
    assert lse.tolist() == np.full((B, 4, L), -np.inf).tolist()


REFUSED = [
    ((1, 0, 3, 8), (1, 1, 3, 8), (1, 1, 3, 8), r"q: shape \(1, 0, 3, 8\) has no heads"),
    ((1, 2, 3, 8), (1, 0, 3, 8), (1, 0, 3, 8), r"k: shape \(1, 0, 3, 8\) has no heads"),
    ((1, 2, 3, 8), (1, 1, 3, 8), (1, 0, 3, 8), r"v: shape \(1, 0, 3, 8\) has no heads"),
    ((1, 2, 3, 0), (1, 1, 3, 0), (1, 1, 3, 8), r"q: shape \(1, 2, 3, 0\) has a head_dim of 0"),
    ((1, 2, 3, 8), (1, 1, 3, 0), (1, 1, 3, 8), r"k: shape \(1, 1, 3, 0\) has a head_dim of 0"),
    ((1, 2, 3, 8), (1, 1, 3, 8), (1, 1, 3, 0), r"v: shape \(1, 1, 3, 0\) has a value_dim of 0"),
    ((0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0), r"q: shape \(0, 0, 0, 0\) has no heads"),
]


@pytest.mark.parametrize(("q", "k", "v", "text"), REFUSED)
def test_no_heads_and_no_width(q: Any, k: Any, v: Any, text: str) -> None:
    arrays = [np.ones(shape, np.float32) for shape in (q, k, v)]
    for call in (sdpa, plan):
        with pytest.raises(InvalidArgument, match=f"{call.__name__}: {text}"):
            call(*arrays)


def test_a_length_past_no_keys() -> None:
    q, k, v = map(np.float32, tensors(2, 3, 0))
    with pytest.raises(InvalidArgument, match="sdpa: kv_lengths: 1, takes 0 to the 0 rows of k"):
        sdpa(q, k, v, kv_lengths=1)


def test_an_output_of_another_size() -> None:
    q, k, v = map(np.float32, tensors(2, 0, 5))
    with pytest.raises(InvalidArgument, match=r"sdpa: out: shape \[2, 4, 1, 16\], takes"):
        sdpa(q, k, v, out=np.ones((2, 4, 1, 16), np.float32))


def test_parameters_of_an_engine_are_never_zero() -> None:
    for field in ("n_heads", "n_kv_heads", "head_dim", "seq_len", "kv_seq_len"):
        sizes = {"n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "seq_len": 1, "kv_seq_len": 1}
        with pytest.raises(InvalidArgument, match=f"SdpaParams: {field}: 0, takes 1"):
            SdpaParams(**sizes | {field: 0}).validate()


def test_a_buffer_of_nothing_is_refused_by_its_shape() -> None:
    empty = np.zeros((1, 2, 0, 8), np.float32)
    with pytest.raises(InvalidArgument, match=r"wrap: array: shape \[1, 2, 0, 8\] has no element"):
        metal_sdpa.Device("cpu").wrap(empty)
