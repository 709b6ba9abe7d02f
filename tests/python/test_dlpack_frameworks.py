"""sdpa() on arrays of torch, JAX and MLX: zero copy in, the caller's own type out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import metal_sdpa
from metal_sdpa import Device, InvalidArgument, Unsupported, UnsupportedDType, sdpa

pytestmark = pytest.mark.frameworks

HALVES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def arrays(dtype: str) -> list[np.ndarray]:
    """q [2, 4, 3, 8], k [2, 2, 5, 8], v [2, 2, 5, 16]."""
    rng = np.random.default_rng(7)
    shapes = [(2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 16)]
    return [rng.standard_normal(shape).astype(HALVES[dtype]) for shape in shapes]


def to_torch(array: np.ndarray) -> Any:
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_jax(array: np.ndarray) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(array)


def to_mlx(array: np.ndarray) -> Any:
    import mlx.core as mx

    if array.dtype == ml_dtypes.bfloat16:
        return mx.array(array.view(np.uint16)).view(mx.bfloat16)
    return mx.array(array)


FRAMEWORKS: dict[str, Callable[[np.ndarray], Any]] = {
    "torch": to_torch,
    "jax": to_jax,
    "mlx": to_mlx,
}


def to_numpy(array: Any) -> np.ndarray:
    """Whatever framework, as f32."""
    if hasattr(array, "float") and not isinstance(array, np.ndarray):
        return np.asarray(array.float())
    if hasattr(array, "astype") and type(array).__module__.startswith("mlx"):
        import mlx.core as mx

        return np.array(array.astype(mx.float32))
    return np.asarray(array).astype(np.float32)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_results_are_the_callers_type_and_numpys_bits(framework: str, dtype: str) -> None:
    made = arrays(dtype)
    expected, expected_lse = sdpa(*made, causal=True, return_lse=True)
    inputs = [FRAMEWORKS[framework](array) for array in made]
    out, lse = sdpa(*inputs, causal=True, return_lse=True)
    assert type(out) is type(inputs[0])
    assert type(lse) is type(inputs[0])
    assert out.dtype == inputs[0].dtype
    assert "float32" in str(lse.dtype)
    assert tuple(out.shape) == expected.shape
    assert np.array_equal(to_numpy(out), expected.astype(np.float32))
    assert np.array_equal(to_numpy(lse), expected_lse)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_framework_of_q_decides(framework: str) -> None:
    q, k, v = arrays("f32")
    out = sdpa(FRAMEWORKS[framework](q), k, v)
    assert type(out) is type(FRAMEWORKS[framework](q))
    assert type(sdpa(q, FRAMEWORKS[framework](k), FRAMEWORKS[framework](v))) is np.ndarray


def test_buffers_in_a_buffer_out() -> None:
    q, k, v = arrays("f16")
    device = Device("cpu")
    out = sdpa(device.wrap(q), device.wrap(k), device.wrap(v))
    assert isinstance(out, metal_sdpa.Buffer)
    assert np.array_equal(out.numpy(), sdpa(q, k, v))


def test_numpy_uint16_holds_bfloat16() -> None:
    q, k, v = arrays("bf16")
    out = sdpa(q.view(np.uint16), k.view(np.uint16), v)
    assert out.dtype == np.uint16
    assert np.array_equal(out, sdpa(q, k, v).view(np.uint16))


def test_torch_uint16_does_not() -> None:
    import torch

    bits = torch.zeros((1, 1, 1, 8), dtype=torch.uint16)
    with pytest.raises(UnsupportedDType, match="sdpa: q: dtype u16, takes f32, f16 or bf16"):
        sdpa(bits, bits, bits)


def test_torch_strides_of_every_kind() -> None:
    import torch

    base = torch.randn(3, 5, 4, 2, 8)
    q = base[1].permute(2, 1, 0, 3)  # [2, 4, 5, 8] out of [5, 4, 2, 8]
    k = torch.randn(1, 1, 7, 8).expand(2, 4, 7, 8)
    out = sdpa(q, k, k)
    assert torch.equal(out, sdpa(q.contiguous(), k.contiguous(), k.contiguous()))
    with pytest.raises(InvalidArgument, match="sdpa: q: the last dimension has a stride of 2"):
        sdpa(torch.randn(2, 4, 5, 16)[..., ::2], k, k)


def test_torch_out_is_written_in_place() -> None:
    import torch

    q, k, v = map(to_torch, arrays("f32"))
    holder = torch.full((2, 3, 4, 16), float("nan"))
    out = holder.permute(0, 2, 1, 3)
    assert sdpa(q, k, v, out=out) is out
    assert torch.equal(out, sdpa(q, k, v))
    shared = torch.zeros(2, 1, 3, 16).expand(2, 4, 3, 16)
    with pytest.raises(InvalidArgument, match="its strides make elements overlap"):
        sdpa(q, k, v, out=shared)
    assert not shared.any()


# --- refusals ------------------------------------------------------------------------------------


def test_gradients_are_refused_by_name_while_grad_mode_is_on() -> None:
    import torch

    q, k, v = map(to_torch, arrays("f32"))
    expected = sdpa(q, k, v)
    for name in "qkv":
        inputs = {"q": q, "k": k, "v": v}
        inputs[name] = inputs[name].clone().requires_grad_()
        with pytest.raises(Unsupported, match=f"sdpa: {name}: requires gradients"):
            sdpa(**inputs)
        with torch.no_grad():
            assert torch.equal(sdpa(**inputs), expected)
        with torch.inference_mode():
            assert torch.equal(sdpa(**inputs), expected)
        assert torch.equal(sdpa(**{n: t.detach() for n, t in inputs.items()}), expected)


def test_sparse_tensors_are_refused() -> None:
    q, k, v = map(to_torch, arrays("f32"))
    with pytest.raises(Unsupported, match="sdpa: k: a sparse tensor"):
        sdpa(q, k.to_sparse(), v)


@pytest.mark.parametrize("dtype", ["float64", "complex64", "int32", "int64", "bool", "uint8"])
def test_other_dtypes_are_refused_by_name(dtype: str) -> None:
    import torch

    q = torch.zeros((1, 1, 1, 8), dtype=getattr(torch, dtype))
    with pytest.raises(UnsupportedDType, match="sdpa: q: dtype "):
        sdpa(q, q, q)
    with pytest.raises(UnsupportedDType, match="sdpa: q: dtype "):
        sdpa(q.numpy(), q.numpy(), q.numpy())


def test_a_meta_tensor_has_no_memory() -> None:
    import torch

    q = torch.zeros((1, 1, 1, 8), device="meta")
    with pytest.raises(Unsupported, match="sdpa: q: "):
        sdpa(q, q, q)


def test_jax_arrays_are_no_output() -> None:
    q, k, v = arrays("f32")
    out = to_jax(np.zeros((2, 4, 3, 16), np.float32))
    with pytest.raises(InvalidArgument, match="sdpa: out: is read-only"):
        sdpa(q, k, v, out=out)
    assert not np.asarray(out).any()


def test_wrap_shares_a_tensors_memory() -> None:
    import torch

    tensor = torch.zeros(4, 8)
    made = Device("cpu").wrap(tensor)
    made.numpy()[2, 3] = 5
    assert tensor[2, 3] == 5
    del tensor
    assert made.numpy()[2, 3] == 5
