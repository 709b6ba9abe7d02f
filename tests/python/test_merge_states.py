"""merge_states: parts of the keys against all of them, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

import metal_sdpa
from metal_sdpa import InvalidArgument, InvalidType, UnsupportedDType, merge_states, sdpa

RANGES = ((0, 7), (7, 7), (7, 40), (40, 41))


def problem(rng, dtype=np.float32):
    q = rng.standard_normal((2, 4, 3, 16)).astype(dtype)
    k, v = (rng.standard_normal((2, 2, 41, 16)).astype(dtype) for _ in range(2))
    return q, k, v


def parts_of(q, k, v, out=None):
    return [
        sdpa(q, k[:, :, a:b], v[:, :, a:b], return_lse=True, out=None if out is None else out())
        for a, b in RANGES
    ]


def exact(outs, lses):
    """In float64; empty states are left out."""
    largest = np.max(lses, axis=0)
    with np.errstate(invalid="ignore"):
        weights = np.where(np.isneginf(lses), 0.0, np.exp(lses - largest))
    values = np.where(weights[..., None] > 0, outs.astype(np.float64), 0.0)
    total = weights.sum(0)
    return (weights[..., None] * values).sum(0) / total[..., None], largest + np.log(total)


def test_parts_merge_into_the_whole():
    q, k, v = problem(np.random.default_rng(1))
    whole, lse = sdpa(q, k, v, return_lse=True)
    outs, lses = zip(*parts_of(q, k, v), strict=True)
    for arguments in ((outs, lses), (np.stack(outs), np.stack(lses))):
        merged, merged_lse = merge_states(*arguments)
        np.testing.assert_allclose(merged, whole, rtol=0, atol=3e-6)
        np.testing.assert_allclose(merged_lse, lse, rtol=0, atol=3e-6)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 5), (2, 3, 4, 5), (2, 2, 3, 4, 5)])
def test_any_number_of_axes_and_any_strides(shape):
    rng = np.random.default_rng(2)
    outs = rng.standard_normal((*shape[:-1], 2 * shape[-1])).astype(np.float32)[..., : shape[-1]]
    outs = outs[::-1]
    order = (*range(len(shape) - 2, -1, -1),)
    lses = rng.standard_normal(shape[:-1][::-1]).astype(np.float32).transpose(order)
    out, lse = merge_states(outs, lses)
    want, want_lse = exact(outs, lses)
    np.testing.assert_allclose(out, want, rtol=0, atol=2e-6)
    np.testing.assert_allclose(lse, want_lse, rtol=0, atol=2e-6)


def test_partials_travel_in_f32_and_are_rounded_once():
    q, k, v = problem(np.random.default_rng(3), np.float16)
    parts = parts_of(q, k, v, out=lambda: np.empty(q.shape, np.float32))
    outs, lses = (np.stack(column) for column in zip(*parts, strict=True))
    out = np.empty(q.shape, np.float16)
    merged, _ = merge_states(outs, lses, out=out)
    assert merged is out
    want, _ = exact(outs, lses)
    np.testing.assert_allclose(out, want, rtol=2**-11, atol=1e-6)


def test_a_state_may_be_the_output():
    rng = np.random.default_rng(4)
    outs = rng.standard_normal((3, 2, 6)).astype(np.float32)
    lses = rng.standard_normal((3, 2)).astype(np.float32)
    apart, _ = merge_states(outs.copy(), lses)
    merged, _ = merge_states(outs, lses, out=outs[1])
    np.testing.assert_array_equal(merged, apart)
    np.testing.assert_array_equal(outs[1], apart)


def test_values_near_the_largest_float_have_a_mean():
    outs = np.full((2, 1, 4), 3e38, np.float32)
    outs[1] = -2e38
    out, _ = merge_states(outs, np.zeros((2, 1), np.float32))
    np.testing.assert_allclose(out, 0.5e38, rtol=1e-6)
    out, lse = merge_states(np.full((5, 2), 3.4e38, np.float32), np.zeros(5, np.float32))
    np.testing.assert_allclose(out, 3.4e38, rtol=1e-6)
    np.testing.assert_allclose(lse, np.log(5), rtol=1e-6)


def test_lists_are_of_one_type_dtype_and_shape():
    f32, f16 = np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float16)
    lse = np.zeros(2, np.float32)
    with pytest.raises(UnsupportedDType, match=r"outs\[1\]: dtype float16, but outs\[0\] has"):
        merge_states([f32, f16], [lse, lse])
    with pytest.raises(UnsupportedDType, match=r"lses\[1\]: dtype float16"):
        merge_states([f16, f16], [lse, lse.astype(np.float16)])
    with pytest.raises(UnsupportedDType, match=r"outs\[1\]: dtype uint16"):
        merge_states([f16, f16.view(np.uint16)], [lse, lse])
    with pytest.raises(InvalidArgument, match=r"outs\[1\]: shape \(1, 4\), but outs\[0\]"):
        merge_states([f32, f32[:1]], [lse, lse])
    for other in (None, [[0.0] * 4] * 2):
        with pytest.raises(InvalidType, match=r"outs\[1\]: got a"):
            merge_states([f32, other], [lse, lse])


def test_what_saw_nothing_counts_for_nothing():
    outs = np.full((2, 3, 4), np.nan, np.float32)
    lses = np.full((2, 3), -np.inf, np.float32)
    outs[1, 2], lses[1, 2] = 5.0, 1.5
    out, lse = merge_states(outs, lses)
    np.testing.assert_array_equal(out, [[0] * 4, [0] * 4, [5] * 4])
    np.testing.assert_array_equal(lse, np.float32([-np.inf, -np.inf, 1.5]))


@pytest.mark.frameworks
def test_torch_in_torch_out():
    torch = pytest.importorskip("torch")
    outs = torch.randn(3, 2, 4, 8, dtype=torch.bfloat16)
    lses = torch.randn(3, 2, 4)
    out, lse = merge_states(list(outs), list(lses))
    assert out.dtype == torch.bfloat16
    assert lse.dtype == torch.float32
    want, _ = exact(outs.float().numpy(), lses.numpy())
    np.testing.assert_allclose(out.float().numpy(), want, rtol=2**-8, atol=1e-6)


def test_bad_states_are_refused_by_name():
    outs = np.zeros((2, 3, 4), np.float32)
    lses = np.zeros((2, 3), np.float32)
    with pytest.raises(InvalidArgument, match=r"outs: is empty"):
        merge_states([], [])
    with pytest.raises(InvalidArgument, match=r"lses: shape \[3, 2\], takes \[2, 3\]"):
        merge_states(outs, lses.T)
    with pytest.raises(InvalidArgument, match=r"outs: shape \[4\]"):
        merge_states(outs[0, 0], lses[0])
    with pytest.raises(InvalidArgument, match=r"outs: the last dimension has a stride of 2"):
        merge_states(outs[..., ::2], lses)
    with pytest.raises(InvalidArgument, match=r"out: shape \[2, 4\], takes \[3, 4\]"):
        merge_states(outs, lses, out=np.zeros((2, 4), np.float32))
    with pytest.raises(InvalidArgument, match=r"out: overlaps outs"):
        merge_states(outs, lses, out=outs.reshape(-1)[2:14].reshape(3, 4))
    with pytest.raises(UnsupportedDType, match=r"lses: dtype f16, takes f32"):
        merge_states(outs, lses.astype(np.float16))
    with pytest.raises(UnsupportedDType, match="outs: dtype"):
        merge_states(outs.astype(np.int32), lses)
    read_only = np.zeros((3, 4), np.float32)
    read_only.flags.writeable = False
    with pytest.raises(InvalidArgument, match="out: is read-only"):
        merge_states(outs, lses, out=read_only)
    assert issubclass(metal_sdpa.InvalidArgument, ValueError)
