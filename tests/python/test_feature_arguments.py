"""Arguments of features: what they take from which library, and the texts of refusals."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import metal_sdpa
from arrays import same_bits
from metal_sdpa import Device, InvalidArgument, InvalidType, Unsupported, UnsupportedDType, sdpa
from problems import Shape
from targets import selected_targets

SHAPE = Shape(B=2, Hq=4, Hkv=2, L=3, S=5, D=8, Dv=8)


def tensors(dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    dims = ((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 8))
    return tuple(rng.standard_normal(d, np.float32).astype(dtype) for d in dims)


@pytest.fixture
def first_device() -> Device:
    return selected_targets()[0].device()


# --- refusals ------------------------------------------------------------------------------------

LENGTHS_TEXT = "an int or a sequence of ints"
WINDOW_TEXT = r"an int, or a pair \(left, right\) of ints or None"
REFUSALS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"mask": np.ones((4, 5), bool)}, InvalidArgument,
     r"mask: shape \[4, 5\], takes what broadcasts to \[2, 4, 3, 5\]"),
    ({"mask": np.ones((3, 4), bool)}, InvalidArgument, r"mask: shape \[3, 4\], takes what"),
    ({"mask": np.ones((3, 6), bool)}, InvalidArgument, r"mask: shape \[3, 6\], takes what"),
    ({"mask": np.ones((2, 3, 5), bool)}, InvalidArgument, r"mask: shape \[2, 3, 5\], takes"),
    ({"mask": np.ones((1, 1, 1, 3, 5), bool)}, InvalidArgument, r"mask: shape \[1, 1, 1, 3, 5\]"),
    ({"mask": np.ones((3, 0), bool)}, InvalidArgument, r"mask: shape \[3, 0\]"),
    ({"mask": np.ones((3, 5), np.uint8)}, UnsupportedDType,
     "mask: dtype u8, takes bool, f32, f16 or bf16"),
    ({"mask": np.ones((3, 5), np.int32)}, UnsupportedDType, "mask: dtype i32, takes bool"),
    ({"mask": np.ones((3, 5), np.uint16)}, UnsupportedDType, "mask: dtype u16, takes bool"),
    ({"mask": np.ones((3, 5), np.int64)}, UnsupportedDType, "mask: dtype i64, takes bool"),
    ({"mask": np.ones((3, 5))}, UnsupportedDType, "mask: dtype float64, takes bool"),
    ({"mask": [[True]]}, InvalidType, "mask: got a list, takes an array"),
    ({"mask": True}, InvalidType, "mask: got a bool, takes an array"),
    ({"mask": np.ones((3, 5), ">f4")}, UnsupportedDType, "mask: dtype >f4 is byte-swapped"),
    ({"window": 0}, InvalidArgument, "window: 0, takes 1 or more keys"),
    ({"window": -1}, InvalidArgument, "window: -1, takes 1 or more keys"),
    ({"window": (-2, 0)}, InvalidArgument, "window: left -2, takes 0 or more, or -1"),
    ({"window": (0, -5)}, InvalidArgument, "window: right -5, takes 0 or more, or -1"),
    ({"window": (1, 2, 3)}, InvalidArgument, f"window: got 3 entries, takes {WINDOW_TEXT}"),
    ({"window": ()}, InvalidArgument, "window: got 0 entries"),
    ({"window": 2.0}, InvalidType, f"window: got a float, takes {WINDOW_TEXT}"),
    ({"window": "5"}, InvalidType, "window: got a str, takes an int"),
    ({"window": True}, InvalidType, "window: got a bool, takes an int"),
    ({"window": (1.5, 0)}, InvalidType, "window: got a float, takes an int"),
    ({"window": 2**64}, InvalidArgument, "window: 18446744073709551616 does not fit"),
    ({"softcap": 0}, InvalidArgument, "softcap: 0, takes a finite f32 above 0, or None"),
    ({"softcap": -3.0}, InvalidArgument, "softcap: -3.0, takes"),
    ({"softcap": np.inf}, InvalidArgument, "softcap: inf, takes"),
    ({"softcap": np.nan}, InvalidArgument, "softcap: nan, takes"),
    ({"softcap": 1e39}, InvalidArgument, r"softcap: 1e\+39, takes"),
    ({"softcap": 1e-60}, InvalidArgument, "softcap: 1e-60, takes"),
    ({"softcap": "5"}, InvalidType, "softcap: got a str, takes a number"),
    ({"sinks": np.zeros(3, np.float32)}, InvalidArgument,
     r"sinks: shape \[3\], takes \[4\], or one number for all heads"),
    ({"sinks": np.zeros((1, 4), np.float32)}, InvalidArgument, r"sinks: shape \[1, 4\], takes"),
    ({"sinks": np.zeros(1, np.float32)}, InvalidArgument, r"sinks: shape \[1\], takes \[4\]"),
    ({"sinks": np.zeros(4)}, UnsupportedDType, "sinks: dtype float64, takes f32 or q's dtype"),
    ({"sinks": np.zeros(4, np.float16)}, UnsupportedDType, "sinks: dtype f16, takes f32 or q's"),
    ({"sinks": np.zeros(4, np.int32)}, UnsupportedDType, "sinks: dtype i32, takes f32 or q's"),
    ({"sinks": np.zeros(4, bool)}, UnsupportedDType, "sinks: dtype bool, takes f32 or q's dtype"),
    ({"sinks": 0.5}, InvalidType, "sinks: got a float, takes an array"),
    ({"sinks": np.array([0, 1, np.nan, 2], np.float32)}, InvalidArgument,
     "sinks: nan of head 2, takes finite numbers and -inf"),
    ({"sinks": np.array(np.inf, np.float32)}, InvalidArgument, "sinks: inf of head 0, takes"),
    ({"alibi_slopes": np.zeros(3, np.float32)}, InvalidArgument,
     r"alibi_slopes: shape \[3\], takes \[4\] or \[2, 4\]"),
    ({"alibi_slopes": np.zeros((1, 4), np.float32)}, InvalidArgument,
     r"alibi_slopes: shape \[1, 4\], takes"),
    ({"alibi_slopes": np.array(1, np.float32)}, InvalidArgument,
     r"alibi_slopes: shape \[\], takes"),
    ({"alibi_slopes": np.zeros(4)}, UnsupportedDType, "alibi_slopes: dtype float64, takes f32"),
    ({"alibi_slopes": np.zeros(4, np.float16)}, UnsupportedDType,
     "alibi_slopes: dtype f16, takes f32"),
    ({"alibi_slopes": np.array([0, np.inf, 0, 0], np.float32)}, InvalidArgument,
     "alibi_slopes: inf of head 1, takes finite numbers"),
    ({"alibi_slopes": np.full((2, 4), np.nan, np.float32)}, InvalidArgument,
     "alibi_slopes: nan of head 0, takes finite numbers"),
    ({"kv_starts": 6}, InvalidArgument, "kv_starts: 6, takes 0 to the 5 rows of k"),
    ({"kv_starts": [0, -1]}, InvalidArgument, "kv_starts: -1, takes 0 to the 5 rows of k"),
    ({"kv_starts": [0]}, InvalidArgument, "kv_starts: 1 entries, but the batch has 2"),
    ({"kv_starts": []}, InvalidArgument, "kv_starts: 0 entries, but the batch has 2"),
    ({"kv_starts": 1.0}, InvalidType, f"kv_starts: got a float, takes {LENGTHS_TEXT}"),
    ({"query_lengths": 4}, InvalidArgument, "query_lengths: 4, takes 0 to the 3 rows of q"),
    ({"query_lengths": [1, 1, 1]}, InvalidArgument,
     "query_lengths: 3 entries, but the batch has 2"),
    ({"query_lengths": "3"}, InvalidType, f"query_lengths: got a str, takes {LENGTHS_TEXT}"),
    ({"key_offset": 1}, InvalidArgument, "q_start: is not given, and has to be with key_offset"),
    ({"key_stride": 2}, InvalidArgument, "q_start: is not given, and has to be with key_offset"),
    ({"key_stride": 0, "q_start": 0}, InvalidArgument, "key_stride: 0, takes 1 to"),
    ({"key_offset": 2**61, "q_start": 0}, InvalidArgument,
     "key_offset: 2305843009213693952, takes"),
    ({"key_offset": 0.5}, InvalidType, "key_offset: got a float, takes an int"),
    ({"key_stride": None, "key_offset": True}, InvalidType, "key_offset: got a bool, takes an int"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), REFUSALS, ids=lambda x: str(x)[:40])
def test_what_is_refused(
    call: dict, error: type[Exception], text: str, first_device: Device
) -> None:
    out = np.full((2, 4, 3, 8), 7, np.float32)
    for function, begin in ((sdpa, "sdpa"), (metal_sdpa.plan, "plan")):
        with pytest.raises(error, match=rf"^{begin}: {text}"):
            function(*tensors(), **call, out=out, device=first_device)
    assert (out == 7).all()


def test_an_out_of_another_16_bit_type_is_refused(first_device: Device) -> None:
    out = np.zeros((2, 4, 3, 8), ml_dtypes.bfloat16)
    with pytest.raises(UnsupportedDType, match="sdpa: out: dtype bf16, but q has f16"):
        sdpa(*tensors(np.float16), out=out, device=first_device)


def test_an_out_that_overlaps_a_mask_is_refused(first_device: Device) -> None:
    arena = np.zeros(2 * 4 * 3 * 8, np.float32)
    mask = arena[:15].reshape(3, 5)
    with pytest.raises(InvalidArgument, match="sdpa: output: overlaps mask"):
        sdpa(*tensors(), mask=mask, out=arena.reshape(2, 4, 3, 8), device=first_device)


# --- layouts -------------------------------------------------------------------------------------


def test_masks_of_every_rank_and_layout_are_one(device: Device) -> None:
    rng = np.random.default_rng(5)
    row = rng.random(5) < 0.6
    full = np.broadcast_to(row, (2, 4, 3, 5))
    same = (
        row,
        row[None],
        row[None, None, None],
        full,
        np.ascontiguousarray(full),
        np.asfortranarray(full),
        np.ascontiguousarray(full[..., ::-1])[..., ::-1],
        np.repeat(full, 3, axis=3)[..., ::3],
        np.ascontiguousarray(full[::-1, :, ::-1])[::-1, :, ::-1],
    )
    expected = sdpa(*tensors(), mask=np.where(full, np.float32(0), -np.inf), device=device)
    for mask in same:
        assert same_bits(sdpa(*tensors(), mask=mask, device=device), expected)


def test_numbers_a_head_of_every_layout(device: Device) -> None:
    values = np.arange(8, dtype=np.float32) / 8
    for name in ("sinks", "alibi_slopes"):
        expected = sdpa(*tensors(), **{name: values[:4].copy()}, device=device)
        reversed_ = np.ascontiguousarray(values[:4][::-1])[::-1]
        doubled = np.repeat(values[:4], 2)[::2]
        for given in (values[:4], reversed_, doubled):
            assert same_bits(sdpa(*tensors(), **{name: given}, device=device), expected)
    both = np.broadcast_to(values[:4], (2, 4))
    assert same_bits(sdpa(*tensors(), alibi_slopes=both, device=device), expected)
    one = np.array(0.5, np.float32)
    four = np.full(4, 0.5, np.float32)
    expected = sdpa(*tensors(), sinks=four, device=device)
    assert same_bits(sdpa(*tensors(), sinks=one, device=device), expected)


def test_bits_of_bfloat16_in_uint16_sinks(device: Device) -> None:
    sinks = np.array([0.5, -1, 2, 0], ml_dtypes.bfloat16)
    q, k, v = (x.view(np.uint16) for x in tensors(ml_dtypes.bfloat16))
    out = sdpa(q, k, v, sinks=sinks.view(np.uint16), device=device)
    expected = sdpa(*tensors(ml_dtypes.bfloat16), sinks=sinks, device=device)
    assert same_bits(out, expected.view(np.uint16))


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 0, 1), (1, 0, 2), (2, 1, 0)])
def test_the_axes_of_a_result_lie_in_the_order_of_q(order: tuple, device: Device) -> None:
    """order: axes B, Hq and L of q, outermost first."""
    q, k, v = tensors()
    axes = (*order, 3)
    moved = np.ascontiguousarray(q.transpose(axes)).transpose(np.argsort(axes))
    out, lse = sdpa(moved, k, v, return_lse=True, device=device)
    assert same_bits(out, sdpa(q, k, v, device=device))
    assert out.transpose(axes).flags.c_contiguous
    assert lse.flags.c_contiguous
    flipped = sdpa(np.ascontiguousarray(moved[:, ::-1])[:, ::-1], k, v, device=device)
    assert same_bits(flipped, out)


def test_axes_of_size_1_of_a_result_stay_where_they_are(device: Device) -> None:
    q = np.zeros((1, 3, 4, 8), np.float32).transpose(0, 2, 1, 3)  # a [B, L, Hq, D] tensor
    k = np.zeros((1, 2, 5, 8), np.float32)
    out = sdpa(q, k, k, device=device)
    assert out.shape == (1, 4, 3, 8)
    assert out.transpose(0, 2, 1, 3).flags.c_contiguous
    assert sdpa(q[:, :, :1], k, k, device=device).flags.c_contiguous


# --- arrays of other libraries -------------------------------------------------------------------


def to_framework(name: str, array: np.ndarray) -> Any:
    if name == "torch":
        import torch

        return torch.from_numpy(array.copy())
    if name == "jax":
        import jax.numpy as jnp

        return jnp.asarray(array)
    import mlx.core as mx

    return mx.array(array)


@pytest.mark.frameworks
@pytest.mark.parametrize("framework", ["torch", "jax", "mlx"])
@pytest.mark.parametrize("wholly", [False, True])
def test_arrays_of_frameworks(framework: str, wholly: bool, first_device: Device) -> None:
    """Features of another library beside NumPy's q, and everything of that library."""
    q, k, v = tensors()
    rng = np.random.default_rng(7)
    calls = [
        {"mask": rng.random((3, 5)) < 0.7},
        {"mask": rng.random((2, 1, 3, 5)) < 0.7},
        {"mask": rng.standard_normal((4, 3, 5), np.float32)},
        {"mask": rng.standard_normal((3, 5), np.float32).astype(np.float16)},
        {"sinks": rng.standard_normal(4, np.float32)},
        {"alibi_slopes": rng.random((2, 4), np.float32)},
        {"kv_starts": np.array([1, 2], np.int32), "query_lengths": np.array([3, 2], np.int32)},
    ]
    for call in calls:
        expected = sdpa(q, k, v, **call, device=first_device)
        given = {name: to_framework(framework, value) for name, value in call.items()}
        arrays = [to_framework(framework, x) for x in (q, k, v)] if wholly else (q, k, v)
        out = sdpa(*arrays, **given, device=first_device)
        assert type(out) is type(arrays[0])
        assert same_bits(np.asarray(out), expected), call


@pytest.mark.frameworks
def test_a_mask_of_torch_that_is_expanded_or_transposed(first_device: Device) -> None:
    import torch

    mask = torch.rand(5, 3) < 0.6
    expected = sdpa(*tensors(), mask=mask.numpy().T.copy(), device=first_device)
    for given in (mask.T, mask.T.expand(2, 4, 3, 5), mask.T[None].contiguous()):
        assert same_bits(sdpa(*tensors(), mask=given, device=first_device), expected)
    with pytest.raises(UnsupportedDType, match="mask: dtype u8, takes bool"):
        sdpa(*tensors(), mask=mask.T.to(torch.uint8), device=first_device)


@pytest.mark.frameworks
def test_the_axes_of_a_torch_result_lie_in_the_order_of_q(first_device: Device) -> None:
    import torch

    q, k, v = (torch.from_numpy(x) for x in tensors())
    moved = q.transpose(1, 2).contiguous().transpose(1, 2)
    out = sdpa(moved, k, v, device=first_device)
    assert out.stride() == moved.stride()
    assert torch.equal(out, sdpa(q, k, v, device=first_device))


@pytest.mark.frameworks
@pytest.mark.parametrize("name", ["mask", "sinks", "alibi_slopes"])
def test_features_that_require_gradients_are_refused(name: str, first_device: Device) -> None:
    import torch

    values = {
        "mask": torch.zeros(3, 5, requires_grad=True),
        "sinks": torch.zeros(4, requires_grad=True),
        "alibi_slopes": torch.zeros(4, requires_grad=True),
    }
    with pytest.raises(Unsupported, match=f"sdpa: {name}: requires gradients"):
        sdpa(*tensors(), **{name: values[name]}, device=first_device)
    with torch.no_grad():
        sdpa(*tensors(), **{name: values[name]}, device=first_device)


def test_a_masked_array_is_no_mask(first_device: Device) -> None:
    mask = np.ma.masked_array(np.ones((3, 5), bool))
    with pytest.raises(Unsupported, match="sdpa: mask: a masked array"):
        sdpa(*tensors(), mask=mask, device=first_device)
