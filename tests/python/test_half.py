"""f16 and bf16 over all 65,536 patterns: with one key, attention is the identity on its value."""

from __future__ import annotations

import numpy as np
import pytest

import metal_sdpa
from arrays import DTYPES, as_f64, bits
from targets import Target

WIDTH = 512  # 128 heads of 512 values hold all patterns


def every_pattern(dtype: str) -> np.ndarray:
    """[1, 128, 1, 512]"""
    patterns = np.arange(65536, dtype=np.uint16)
    return patterns.view(DTYPES[dtype]).reshape(1, 65536 // WIDTH, 1, WIDTH)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("repeats", [1, 8], ids=["one key", "eight equal keys"])
def test_values_go_through_unchanged(target: Target, dtype: str, repeats: int) -> None:
    v = every_pattern(dtype)
    v = np.ascontiguousarray(np.repeat(v, repeats, axis=2))
    if target.kind != "cpu":
        v = v[:, :, :, :256]  # both halves of a head's patterns have the same kinds of values
    heads = v.shape[1]
    q = np.ones((1, heads, 1, 4), DTYPES[dtype])
    k = np.ones((1, heads, repeats, 4), DTYPES[dtype])
    out = metal_sdpa.sdpa(q, k, v, device=target.device())[:, :, 0].ravel()
    want = v[:, :, 0].ravel()
    is_nan = np.isnan(want.astype(np.float32))
    assert np.isnan(out[is_nan].astype(np.float32)).all(), "a NaN became a number"
    # The sum of weighted values must fit f32: it is divided by the sum of weights at the end.
    exact = ~is_nan & ((np.abs(as_f64(want)) < 2.0**128 / repeats) | np.isinf(as_f64(want)))
    if dtype == "bf16":  # bf16 subnormals may flush to zero
        subnormal = (np.abs(as_f64(want[exact])) < 2.0**-126) & (as_f64(want[exact]) != 0)
        got, wanted = as_f64(out[exact]), as_f64(want[exact])
        assert ((got == wanted) | (subnormal & (got == 0))).all()
        return
    # -0 may come back as +0: a sum of weighted values starts from zero.
    assert np.array_equal(as_f64(out[exact]), as_f64(want[exact]))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_results_are_rounded_to_nearest_even(target: Target, dtype: str) -> None:
    """The mean of two neighbours is a tie: the even one wins. Over every finite pair."""
    patterns = np.arange(0, 0x7BFF if dtype == "f16" else 0x7F7F, dtype=np.uint16)
    if dtype == "bf16":
        patterns = patterns[patterns >= 0x0100]  # subnormals may flush
    patterns = patterns[: len(patterns) // WIDTH * WIDTH]
    if target.kind != "cpu":
        patterns = patterns[::4][: len(patterns[::4]) // WIDTH * WIDTH]
    low = patterns.view(DTYPES[dtype]).reshape(1, -1, 1, WIDTH)
    high = (patterns + 1).view(DTYPES[dtype]).reshape(low.shape)
    v = np.concatenate([low, high], axis=2)
    q = np.zeros((1, v.shape[1], 1, 4), DTYPES[dtype])
    k = np.ones((1, v.shape[1], 2, 4), DTYPES[dtype])
    out = metal_sdpa.sdpa(q, k, v, device=target.device())
    even = np.where(patterns % 2 == 0, patterns, patterns + 1)
    assert np.array_equal(bits(out).ravel(), even)
