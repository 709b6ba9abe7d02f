"""metal_sdpa.integrations.mlx: MLX's own meaning of every argument, and its place in MLX."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import accuracy
import metal_sdpa
from oracle import Reference, attention

pytestmark = pytest.mark.frameworks

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
B, Hq, Hkv, L, S, D = 2, 4, 2, 5, 9, 16


@pytest.fixture(autouse=True)
def _mlx_as_it_was() -> Iterator[None]:
    import mlx.core as mx

    own = mx.fast.scaled_dot_product_attention
    yield
    assert mx.fast.scaled_dot_product_attention is own


@pytest.fixture
def no_compile() -> Iterator[None]:
    import mlx.core as mx

    mx.disable_compile()
    yield
    mx.enable_compile()


def ours(*arguments: Any, **keywords: Any) -> Any:
    from metal_sdpa.integrations.mlx import scaled_dot_product_attention

    return scaled_dot_product_attention(*arguments, **keywords)


def to_numpy(x: Any) -> np.ndarray:
    """MLX's bfloat16 has no NumPy of its own."""
    import mlx.core as mx

    if x.dtype == mx.bfloat16:
        return np.array(x.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.array(x)


def normal(seed: int, *shapes: tuple[int, ...], dtype: str = "f32") -> list[Any]:
    """Scores have a deviation of 3 with D = 16 and a scale of 0.25."""
    import mlx.core as mx

    rng = np.random.default_rng(seed)
    values = (mx.array((3**0.5 * rng.standard_normal(s)).astype(np.float32)) for s in shapes)
    return [x.astype(getattr(mx, DTYPES[dtype])) for x in values]


def qkv(seed: int = 0, dtype: str = "f32", length: int = L) -> list[Any]:
    return normal(seed, (B, Hq, length, D), (B, Hkv, S, D), (B, Hkv, S, D), dtype=dtype)


def oracle(q: Any, k: Any, v: Any, **call: Any) -> Reference:
    """In float64, of the same rounded inputs; "causal" is bottom-right."""
    mask, sinks = call.get("mask"), call.get("sinks")
    causal = isinstance(mask, str)
    batch, kv_len = q.shape[0], k.shape[2]
    return attention(
        *map(to_numpy, (q, k, v)),
        scale=call.get("scale", 0.25),
        causal=causal,
        q_starts=np.full(batch, kv_len - q.shape[2]),
        kv_lengths=np.full(batch, kv_len),
        mask=None if mask is None or causal else to_numpy(mask),
        sinks=None if sinks is None else to_numpy(sinks),
    )


def assert_right(got: Any, reference: Reference, dtype: str) -> None:
    import mlx.core as mx

    assert isinstance(got, mx.array)
    assert got.dtype == getattr(mx, DTYPES[dtype])
    assert accuracy.output_errors(to_numpy(got), reference, dtype).max() <= 1


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, L, S + 3])
def test_plain_and_causal(dtype: str, length: int) -> None:
    """With more queries than keys the first rows see nothing."""
    arrays = qkv(1, dtype, length)
    for call in ({}, {"mask": "causal"}, {"scale": -0.4}, {"mask": ""}):
        reference = oracle(*arrays, **{n: x for n, x in call.items() if x != ""})
        assert_right(ours(*arrays, **{"scale": 0.25} | call), reference, dtype)


MASKS = [(), (S,), (L, 1), (1, S), (L, S), (Hq, L, S), (1, 1, S), (B, 1, L, S), (B, Hq, 1, S)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_masks_of_every_rank(shape: tuple[int, ...], dtype: str) -> None:
    import mlx.core as mx

    arrays, rng = qkv(2, dtype), np.random.default_rng(len(shape))
    values = rng.standard_normal(shape).astype(np.float32)
    masks = [
        mx.array(rng.random(shape) < 0.6),
        *(mx.array(values).astype(getattr(mx, name)) for name in DTYPES.values()),
        mx.array(np.where(values > 0.5, -np.inf, values).astype(np.float32)),
        mx.array(np.full(shape, True)),
    ]
    for mask in masks:
        got = ours(*arrays, scale=0.25, mask=mask)
        assert_right(got, oracle(*arrays, mask=mask), dtype)


def test_integers_are_added_as_mlx_does() -> None:
    import mlx.core as mx

    arrays, mask = qkv(3), mx.arange(S) % 4
    wanted = mx.fast.scaled_dot_product_attention(*arrays, scale=0.25, mask=mask)
    got = ours(*arrays, scale=0.25, mask=mask)
    np.testing.assert_allclose(to_numpy(got), to_numpy(wanted), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sinks(dtype: str) -> None:
    import mlx.core as mx

    arrays = qkv(4, dtype)
    sinks = mx.array([-2.0, 0.5, 3.0, -float("inf")])
    for name in ("float32", DTYPES[dtype], "float16"):
        given = sinks.astype(getattr(mx, name))
        got = ours(*arrays, scale=0.25, mask="causal", sinks=given)
        assert_right(got, oracle(*arrays, mask="causal", sinks=given), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_are_read_as_they_stand(dtype: str) -> None:
    """`.T` views, rows of a cache, heads in another order in memory, broadcast, reversed."""
    import mlx.core as mx

    q, k, v = qkv(5, dtype)
    wanted = oracle(q, k, v)
    (cache,) = normal(6, (B, Hkv, 2 * S, D), dtype=dtype)
    cache[:, :, 3 : 3 + S] = k
    views = {
        "cache": (q, cache[:, :, 3 : 3 + S], v),
        "transposed": tuple(mx.contiguous(x.swapaxes(2, 3)).swapaxes(2, 3) for x in (q, k, v)),
        "rows first": tuple(mx.contiguous(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v)),
        "T": tuple(mx.contiguous(x.T).T for x in (q, k, v)),
        "reversed": tuple(mx.contiguous(x[..., ::-1])[..., ::-1] for x in (q, k, v)),
        "lazy": (q + 0, k * 1, mx.concatenate([v[:, :1], v[:, 1:]], axis=1)),
    }
    for call in views.values():
        assert_right(ours(*call, scale=0.25), wanted, dtype)
    shared = mx.broadcast_to(k[:1], k.shape)
    assert_right(ours(q, shared, shared, scale=0.25), oracle(q, shared, shared), dtype)
    mask = mx.array(np.random.default_rng(0).random((S, L)) < 0.6).T
    assert_right(ours(q, k, v, scale=0.25, mask=mask), oracle(q, k, v, mask=mask), dtype)


def test_dtypes_are_brought_together() -> None:
    import mlx.core as mx

    q, k, v = qkv(7)
    mixes = [
        (q, k.astype(mx.float16), v, "f32"),
        (q.astype(mx.bfloat16), k.astype(mx.bfloat16), v, "f32"),
        (q.astype(mx.float16), k.astype(mx.bfloat16), v.astype(mx.float16), "f32"),
    ]
    for *arrays, dtype in mixes:
        wanted = mx.fast.scaled_dot_product_attention(*arrays, scale=0.25)
        got = ours(*arrays, scale=0.25)
        assert got.dtype == wanted.dtype
        assert_right(got, oracle(*arrays), dtype)


def test_nothing_to_do() -> None:
    import mlx.core as mx

    q, k, v = qkv(8)
    assert ours(q[:, :, :0], k, v, scale=1.0).shape == (B, Hq, 0, D)
    assert ours(q[:0], k[:0], v[:0], scale=1.0).shape == (0, Hq, L, D)
    empty = mx.zeros((B, Hkv, 0, D))
    assert not to_numpy(ours(q, empty, empty, scale=1.0)).any()
    hidden = mx.zeros((L, S), mx.bool_)
    assert not to_numpy(ours(q, k, v, scale=1.0, mask=hidden)).any()


def test_errors() -> None:
    import mlx.core as mx

    q, k, v = qkv(9)
    cases: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (metal_sdpa.InvalidArgument, "mask: 'full', takes", (q, k, v), {"mask": "full"}),
        (metal_sdpa.InvalidType, "mask: a ndarray, takes", (q, k, v), {"mask": np.ones((L, S))}),
        (metal_sdpa.InvalidType, "sinks: a ndarray, takes", (q, k, v), {"sinks": np.ones(Hq)}),
        (metal_sdpa.InvalidType, "k: a ndarray, takes", (q, to_numpy(k), v), {}),
        (metal_sdpa.InvalidArgument, r"q: shape \(4, 5, 16\), takes", (q[0], k, v), {}),
        (metal_sdpa.InvalidArgument, "mask", (q, k, v), {"mask": mx.zeros((L, S + 1))}),
        (metal_sdpa.InvalidArgument, "mask", (q, k, v), {"mask": mx.zeros((1, 1, 1, L, S))}),
        (metal_sdpa.InvalidArgument, "sinks", (q, k, v), {"sinks": mx.zeros((3,))}),
        (metal_sdpa.InvalidArgument, "head_dim", (q, k[..., :8], v), {}),
        (metal_sdpa.InvalidArgument, "heads", (q[:, :3], k, v), {}),
    ]
    for error, text, arrays, options in cases:
        with pytest.raises(error, match=text):
            ours(*arrays, scale=0.25, **options)
    with pytest.raises(TypeError):
        ours(q, k, v)


# --- transformations -----------------------------------------------------------------------------


def transformed() -> dict[str, Callable[[Callable[..., Any], Any], Any]]:
    """Ways to ask for a gradient or a tangent of what x is part of."""
    import mlx.core as mx

    return {
        "grad": lambda f, x: mx.grad(lambda x: f(x).sum())(x),
        "vjp": lambda f, x: mx.vjp(f, [x], [mx.ones(f(x).shape)])[1],
        "jvp": lambda f, x: mx.jvp(f, [x], [x])[1],
        "value_and_grad": lambda f, x: mx.value_and_grad(lambda x: (f(x) ** 2).sum())(x)[1],
        "checkpoint": lambda f, x: mx.grad(lambda x: mx.checkpoint(f)(x).sum())(x),
    }


def functions_of_one() -> dict[str, tuple[Callable[[Any], Any], Any]]:
    import mlx.core as mx

    q, k, v = qkv(10)
    mask, sinks = mx.zeros((L, S)), mx.zeros((Hq,))
    return {
        "q": (lambda x: ours(x, k, v, scale=0.25), q),
        "k": (lambda x: ours(q, x, v, scale=0.25), k),
        "v": (lambda x: ours(q, k, x, scale=0.25), v),
        "mask": (lambda x: ours(q, k, v, scale=0.25, mask=x), mask),
        "sinks": (lambda x: ours(q, k, v, scale=0.25, sinks=x), sinks),
        "a view": (lambda x: ours(x.swapaxes(2, 3)[:, :, :L, :S], k[..., :S], v, scale=0.25), k),
    }


@pytest.mark.parametrize("name", ["q", "k", "v", "mask", "sinks"])
@pytest.mark.parametrize("way", ["grad", "vjp", "jvp", "value_and_grad", "checkpoint"])
def test_gradients_are_refused(name: str, way: str) -> None:
    function, x = functions_of_one()[name]
    with pytest.raises(metal_sdpa.Unsupported, match="forward only"):
        transformed()[way](function, x)


@pytest.mark.usefixtures("no_compile")
@pytest.mark.parametrize("name", ["q", "k", "v", "mask", "sinks"])
@pytest.mark.parametrize("way", ["grad", "vjp", "jvp", "value_and_grad"])
def test_gradients_are_refused_where_tracing_does_not_show(name: str, way: str) -> None:
    """mx.disable_compile() hides from metal_sdpa.sdpa that an array is traced."""
    function, x = functions_of_one()[name]
    assert_right(function(x), oracle(*qkv(10), **zeros_of(name)), "f32")
    with pytest.raises(metal_sdpa.Unsupported, match="has no gradient"):
        transformed()[way](function, x)


def zeros_of(name: str) -> dict[str, Any]:
    import mlx.core as mx

    return {"sinks": mx.zeros((Hq,))} if name == "sinks" else {}


def test_a_gradient_beside_attention_is_not_refused() -> None:
    import mlx.core as mx

    q, k, v = qkv(11)
    fixed = ours(q, k, v, scale=0.25)
    gradient = mx.grad(lambda w: (w * ours(q, k, v, scale=0.25)).sum())(mx.ones_like(q))
    assert np.array_equal(to_numpy(gradient), to_numpy(fixed))


def test_compile_and_vmap_fall_back_to_mlx() -> None:
    import mlx.core as mx

    from metal_sdpa.integrations.mlx import stats

    q, k, v = qkv(12)
    wanted = to_numpy(ours(q, k, v, scale=0.25, mask="causal"))
    reason = "mx.compile or mx.vmap traces an array"
    before = stats().fell_back.get(reason, 0)

    def attend(q: Any, k: Any, v: Any) -> Any:
        return ours(q, k, v, scale=0.25, mask="causal")

    compiled = mx.compile(attend)(q, k, v)
    mapped = mx.vmap(attend)(q[:, None], k[:, None], v[:, None])[:, 0]
    in_compiled = mx.compile(mx.grad(lambda q: attend(q, k, v).sum()))(q)
    own = mx.grad(
        lambda q: mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25, mask="causal").sum()
    )(q)
    for got in (compiled, mapped):
        np.testing.assert_allclose(to_numpy(got), wanted, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(to_numpy(in_compiled), to_numpy(own), rtol=2e-5, atol=2e-5)
    assert to_numpy(own).any()
    assert stats().fell_back[reason] == before + 3
    assert stats().last_reason == reason


def test_other_dtypes_and_large_heads_fall_back_to_mlx() -> None:
    import mlx.core as mx

    from metal_sdpa.integrations.mlx import stats

    before = stats().fell_back
    arrays = [x.astype(mx.float64, stream=mx.cpu) for x in qkv(13)]
    with mx.stream(mx.cpu):
        got = ours(*arrays, scale=0.25)
        assert got.dtype == mx.float64
        np.testing.assert_allclose(to_numpy(got), oracle(*arrays).out, rtol=1e-5, atol=1e-5)
        large = normal(14, (1, 2, 3, 1032), (1, 2, 4, 1032), (1, 2, 4, 1032))
        got = ours(*large, scale=0.03)
    reference = oracle(*large, scale=0.03).out
    np.testing.assert_allclose(to_numpy(got), reference, rtol=1e-4, atol=1e-4)
    new = {reason for reason, n in stats().fell_back.items() if n > before.get(reason, 0)}
    assert new == {"dtype mlx.core.float64", "a head of 1032"}


# --- its place in MLX ----------------------------------------------------------------------------


def test_mlx_nn_attends_here_while_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core as mx
    import mlx.nn as nn

    from metal_sdpa.integrations import mlx as ours

    (x,) = normal(15, (B, S, 64))
    mx.random.seed(0)
    layer = nn.MultiHeadAttention(64, 4)
    mask = nn.MultiHeadAttention.create_additive_causal_mask(S)
    wanted = to_numpy(layer(x, x, x, mask))
    calls = []
    sdpa = ours._sdpa
    monkeypatch.setattr(ours, "_sdpa", lambda *a, **k: calls.append(1) or sdpa(*a, **k))
    with ours.enabled():
        got = to_numpy(layer(x, x, x, mask))
    assert len(calls) == 1
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    layer(x, x, x, mask)
    assert len(calls) == 1


def is_ours() -> bool:
    """Whether MLX's name comes here: rows that see nothing are 0 only here."""
    import mlx.core as mx

    q = mx.ones((1, 1, 1, 4))
    hidden = mx.zeros((1, 1), mx.bool_)
    out = mx.fast.scaled_dot_product_attention(q, q, q, scale=1.0, mask=hidden)
    return not to_numpy(out).any()


def test_enable_and_disable_in_any_order() -> None:
    from metal_sdpa.integrations.mlx import disable, enable, enabled

    assert not is_ours()
    disable()
    assert not is_ours()
    for _ in range(2):
        enable()
        assert is_ours()
    disable()
    assert not is_ours()
    with enabled():
        with enabled():
            assert is_ours()
        assert is_ours()
        enable()
        disable()
        assert is_ours()  # the block stays
    assert not is_ours()
    enable()
    with enabled():
        pass
    assert is_ours()  # enable() stays
    disable()
    with pytest.raises(ZeroDivisionError), enabled():
        raise ZeroDivisionError
    assert not is_ours()


def test_who_kept_or_wrapped_the_function_gets_mlxs_own_back() -> None:
    import mlx.core as mx

    from metal_sdpa.integrations.mlx import disable, enable

    own = mx.fast.scaled_dot_product_attention
    enable()
    kept = mx.fast.scaled_dot_product_attention

    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        return kept(*arguments, **keywords)

    mx.fast.scaled_dot_product_attention = wrapper
    try:
        assert is_ours()
        disable()
        assert mx.fast.scaled_dot_product_attention is wrapper
        assert not is_ours()
        enable()
        assert is_ours()
        disable()
    finally:
        mx.fast.scaled_dot_product_attention = own


def test_blocks_of_threads_overlap() -> None:
    from metal_sdpa.integrations.mlx import enabled

    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with enabled():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=stay)
    with enabled():
        thread.start()
        assert inside.wait(60)
    assert is_ours()
    leave.set()
    thread.join(60)
    assert not is_ours()


def test_threads_of_their_own_arrays() -> None:
    wrong = []

    def work(seed: int) -> None:
        for i in range(20):
            arrays = qkv(100 * seed + i)
            got = ours(*arrays, scale=0.25, mask="causal")
            error = accuracy.output_errors(to_numpy(got), oracle(*arrays, mask="causal"), "f32")
            if error.max() > 1:
                wrong.append((seed, i))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert not wrong


def test_nothing_else_is_imported() -> None:
    code = (
        "import metal_sdpa, sys; assert 'mlx' not in sys.modules;"
        "import metal_sdpa.integrations.mlx;"
        "assert not {'torch', 'jax', 'onnx', 'mlx_lm', 'mlx.nn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
