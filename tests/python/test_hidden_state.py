"""What an array carries beside its memory is refused by name, never dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from metal_sdpa import Device, InvalidArgument, SdpaParams, Unsupported, sdpa

X = np.random.default_rng(5).standard_normal((1, 2, 3, 8)).astype(np.float32)


def calls(plain: Any, hidden: Any) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every place where an array goes in, with the beginning of its text."""
    yield "sdpa: q: ", lambda: sdpa(hidden, plain, plain)
    yield "sdpa: k: ", lambda: sdpa(plain, hidden, plain)
    yield "sdpa: v: ", lambda: sdpa(plain, plain, hidden)
    yield "sdpa: out: ", lambda: sdpa(plain, plain, plain, out=hidden)
    yield "wrap: array: ", lambda: Device("cpu").wrap(hidden)


def check_refused(plain: Any, hidden: Any, text: str) -> None:
    for start, call in calls(plain, hidden):
        with pytest.raises(Unsupported, match=start + ".*" + text):
            call()


# --- NumPy ---------------------------------------------------------------------------------------


def test_masked_arrays() -> None:
    masked = np.ma.masked_array(X.copy(), mask=X > 0)
    check_refused(X, masked, "a masked array")
    expected = sdpa(X, X, np.ma.filled(masked, 0))
    assert np.array_equal(sdpa(X, X, masked.filled(0)), expected)


class Quantity(np.ndarray):
    """Numbers of a unit, known to its own arithmetic alone."""

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        return NotImplemented


class Recorded(np.ndarray):
    def __array_function__(self, *_: Any, **__: Any) -> Any:
        return NotImplemented


@pytest.mark.parametrize("kind", [Quantity, Recorded])
def test_arrays_with_functions_of_their_own(kind: type[np.ndarray]) -> None:
    check_refused(X, X.copy().view(kind), "has NumPy's functions done its own way")


def test_subclasses_that_are_their_memory(tmp_path: Any) -> None:
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=X.shape)
    mapped[...] = X
    assert np.array_equal(sdpa(mapped, mapped, mapped), sdpa(X, X, X))


def test_another_librarys_gradients() -> None:
    class Tensor:
        requires_grad = True

        def __dlpack__(self, **request: Any) -> Any:
            return X.__dlpack__(**request)

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    check_refused(X, Tensor(), "requires gradients")


# --- torch ---------------------------------------------------------------------------------------


@pytest.mark.frameworks
def test_lazily_negated_tensors() -> None:
    import torch

    x = torch.from_numpy(X.copy())
    check_refused(x, torch._neg_view(x.clone()), "a lazily negated view")
    check_refused(x, torch._neg_view(x.clone())[:, :, 1:], "a lazily negated view")
    ones = torch.ones(1, 2, 3, 1)
    imaginary = torch.randn(1, 2, 3, 1, dtype=torch.complex64).conj().imag
    check_refused(ones, imaginary, "a lazily negated view")
    plain = imaginary.resolve_neg().contiguous()
    assert torch.equal(sdpa(ones, ones, imaginary.resolve_neg()), sdpa(ones, ones, plain))


@pytest.mark.frameworks
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_forward_mode_tangents() -> None:
    import torch
    from torch.autograd import forward_ad

    x = torch.from_numpy(X.copy())
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.clone(), torch.ones_like(x))
        check_refused(x, dual, "a tangent")
        check_refused(X, dual, "a tangent")
        assert torch.equal(sdpa(x, x, x), torch.from_numpy(sdpa(X, X, X)))
        assert torch.equal(sdpa(forward_ad.unpack_dual(dual).primal, x, x), sdpa(x, x, x))


def torch_function(name: str) -> Callable[[Any], Any]:
    """A transformation of functions of one tensor."""
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    transforms: dict[str, Callable[[Callable[[Any], Any]], Callable[[Any], Any]]] = {
        "vmap": torch.func.vmap,
        "grad": lambda f: torch.func.grad(lambda x: f(x).sum()),
        "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x,)),
        "jit.trace": lambda f: lambda x: torch.jit.trace(f, (x,), check_trace=False),
        "make_fx real": lambda f: make_fx(f, tracing_mode="real"),
        "make_fx fake": lambda f: make_fx(f, tracing_mode="fake"),
        "export": lambda f: lambda x: torch.export.export(module_of(f), (x,)),
    }
    return lambda x: transforms[name](lambda y: y + sdpa(y, y, y))(x)


def module_of(function: Callable[[Any], Any]) -> Any:
    import torch

    class Module(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return function(x)

    return Module()


@pytest.mark.frameworks
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    "name", ["vmap", "grad", "jvp", "jit.trace", "make_fx real", "make_fx fake", "export"]
)
def test_torch_transformations(name: str) -> None:
    import torch

    x = torch.from_numpy(X.copy())
    given = torch.stack([x, x]) if name == "vmap" else x
    with pytest.raises(Unsupported, match=r"sdpa: [qkv]: "):
        torch_function(name)(given)
    assert torch.equal(sdpa(x, x, x), torch.from_numpy(sdpa(X, X, X)))


@pytest.mark.frameworks
def test_a_recording_counts_for_tensors_in_any_place() -> None:
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    out = torch.zeros(1, 2, 3, 8)
    with pytest.raises(Unsupported, match="sdpa: out: torch is recording a trace"):
        make_fx(lambda x: x + sdpa(X, X, X, out=out))(out)
    with pytest.raises(Unsupported, match="wrap: array: torch is recording a trace"):
        make_fx(lambda x: x + len(Device("cpu").wrap(x).shape))(out)


@pytest.mark.frameworks
def test_other_dispatch_modes_are_no_recording() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.from_numpy(X.copy())
    with FlopCounterMode(display=False):
        assert torch.equal(sdpa(x, x, x), torch.from_numpy(sdpa(X, X, X)))


@pytest.mark.frameworks
def test_torch_subclasses_that_dispatch() -> None:
    import torch

    class Doubled(torch.Tensor):
        """Shows twice what its memory holds."""

        @classmethod
        def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):
            return function(*args, **(kwargs or {}))

    x = torch.from_numpy(X.copy())
    check_refused(x, torch.Tensor._make_subclass(Doubled, x.clone()), "__torch_dispatch__")


@pytest.mark.frameworks
def test_torch_subclasses_that_are_their_memory() -> None:
    import torch

    class Named(torch.Tensor):
        pass

    x = torch.from_numpy(X.copy())
    expected = torch.from_numpy(sdpa(X, X, X))
    kinds = [torch.nn.Parameter(x, requires_grad=False), torch.nn.Buffer(x), x.as_subclass(Named)]
    with torch.inference_mode():
        kinds.append(x.clone())
    for tensor in kinds:
        assert torch.equal(sdpa(tensor, x, tensor), expected)


@pytest.mark.frameworks
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_without_elements_in_memory() -> None:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    x = torch.from_numpy(X.copy())
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    emptied = x.clone()
    emptied.untyped_storage().resize_(0)
    odd = {
        "fake": fake,
        "meta": x.to("meta"),
        "zero": torch._efficientzerotensor(X.shape),
        "quantised": torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
        "mkldnn": x.to_mkldnn(),
        "nested": torch.nested.nested_tensor([x[0], x[0]]),
        "jagged": torch.nested.nested_tensor([x[0, 0], x[0, 0]], layout=torch.jagged),
        "sparse": x.to_sparse(),
        "emptied": emptied,
    }
    for tensor in odd.values():
        for start, call in calls(x, tensor):
            with pytest.raises((Unsupported, InvalidArgument), match=start):
                call()


# --- MLX and JAX ---------------------------------------------------------------------------------


def mlx_calls(name: str, x: Any) -> Callable[[Callable[[Any], Any]], Any]:
    import mlx.core as mx

    return {
        "grad": lambda f: mx.grad(lambda q: f(q).sum())(x),
        "value_and_grad": lambda f: mx.value_and_grad(lambda q: f(q).sum())(x),
        "vjp": lambda f: mx.vjp(f, [x], [x]),
        "jvp": lambda f: mx.jvp(f, [x], [x]),
        "vmap": lambda f: mx.vmap(f)(mx.stack([x, x])),
        "compile": lambda f: mx.compile(f)(x),
        "checkpoint in grad": lambda f: mx.grad(lambda q: mx.checkpoint(f)(q).sum())(x),
    }[name]


MLX = ("grad", "value_and_grad", "vjp", "jvp", "vmap", "compile", "checkpoint in grad")


@pytest.mark.frameworks
@pytest.mark.parametrize("name", MLX)
def test_mlx_transformations(name: str) -> None:
    import mlx.core as mx

    x = mx.array(X)
    transform = mlx_calls(name, x)
    for argument in "qkv":
        fixed = dict.fromkeys(set("qkv") - {argument}, x)
        with pytest.raises(Unsupported, match=f"sdpa: {argument}: "):
            transform(lambda y, name=argument, fixed=fixed: sdpa(**fixed, **{name: y}))
    with pytest.raises(Unsupported, match="sdpa: k: "):
        transform(lambda y: mx.array(sdpa(X, y, X)))
    with pytest.raises(Unsupported, match="wrap: array: "):
        transform(lambda y: y * len(Device("cpu").wrap(y).shape))


@pytest.mark.frameworks
def test_mlx_arrays_that_nothing_traces() -> None:
    """Beside those that are, and of shapes, dtypes and ranks that were not met before."""
    import mlx.core as mx

    expected = sdpa(X, X, X)
    x = mx.array(X)
    found = []

    def function(y: mx.array) -> mx.array:
        found.append(np.array(sdpa(x, mx.array(np.array(y)), x + 0)))
        return y.sum()

    mx.grad(function)(x)
    assert np.array_equal(found[0], expected)
    for dtype in (mx.float16, mx.bfloat16, mx.float32):
        for rows in (1, 2, 3):
            part = mx.array(X[:, :, :rows]).astype(dtype)
            assert sdpa(part, part, part).dtype == dtype
    assert np.array_equal(np.array(mx.checkpoint(lambda y: sdpa(y, y, y))(x)), expected)
    mx.disable_compile()
    try:
        assert np.array_equal(np.array(sdpa(x, x, x)), expected)
    finally:
        mx.enable_compile()


@pytest.mark.frameworks
@pytest.mark.parametrize("name", ["jit", "grad", "vmap", "jvp", "eval_shape"])
def test_jax_transformations(name: str) -> None:
    import jax
    import jax.numpy as jnp

    x = jnp.asarray(X)
    transforms: dict[str, Callable[[Callable[[Any], Any]], Any]] = {
        "jit": lambda f: jax.jit(f)(x),
        "grad": lambda f: jax.grad(lambda y: f(y).sum())(x),
        "vmap": lambda f: jax.vmap(f)(jnp.stack([x, x])),
        "jvp": lambda f: jax.jvp(f, (x,), (x,)),
        "eval_shape": lambda f: jax.eval_shape(f, x),
    }
    with pytest.raises(Unsupported, match="sdpa: k: "):
        transforms[name](lambda y: sdpa(x, y, x))
    with pytest.raises(ValueError, match="sdpa: kv_lengths: got a"):
        transforms["jit"](lambda y: sdpa(x, x, x, kv_lengths=y[0, 0, :1, 0].astype(int)))


@pytest.mark.frameworks
def test_deleted_jax_arrays() -> None:
    import jax.numpy as jnp

    x = jnp.asarray(X)
    gone = jnp.asarray(X) + 0
    gone.delete()
    with pytest.raises(Unsupported, match="sdpa: v: an ArrayImpl gives no DLPack tensor"):
        sdpa(x, x, gone)


# --- numbers that are arrays ---------------------------------------------------------------------


@pytest.mark.frameworks
def test_a_scale_with_a_gradient() -> None:
    import mlx.core as mx
    import torch

    scale = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(Unsupported, match="sdpa: scale: requires gradients"):
        sdpa(X, X, X, scale=scale)
    with pytest.raises(Unsupported, match="SdpaParams: scale: requires gradients"):
        SdpaParams(2, 2, 8, 3, 3, scale)
    with torch.no_grad():
        assert np.array_equal(sdpa(X, X, X, scale=scale), sdpa(X, X, X, scale=0.5))
    with pytest.raises(Unsupported, match="sdpa: scale: an MLX transformation"):
        mx.grad(lambda s: mx.array(sdpa(X, X, X, scale=s)).sum())(mx.array(0.5))
    assert np.array_equal(sdpa(X, X, X, scale=mx.array(0.5)), sdpa(X, X, X, scale=0.5))
