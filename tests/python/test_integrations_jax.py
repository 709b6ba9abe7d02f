"""metal_sdpa.integrations.jax: our arguments and JAX's, under JAX's transformations."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import accuracy
import metal_sdpa
from arrays import DTYPES, same_bits
from features import FEATURES, FeatureProblem, feature_problem
from oracle import attention

pytestmark = pytest.mark.frameworks

# Each feature alone and some together, without what writes into a given array.
COMBINATIONS = (
    (),
    ("causal",),
    ("causal", "window", "softcap", "sinks", "alibi", "bool_mask", "kv_lengths"),
    ("band", "bias", "kv_starts", "query_lengths", "q_start"),
    ("causal", "shard", "sinks", "bias"),
    *((name,) for name in FEATURES if name not in ("causal", "out_f32")),
)


@pytest.fixture(params=["ffi", "callback"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a computation reaches the kernels: each has to do where the other is not to be had."""
    from metal_sdpa.integrations import jax as ours

    assert ours._NATIVE
    monkeypatch.setattr(ours, "_NATIVE", request.param == "ffi")
    return str(request.param)


def normal(seed: int, *shapes: tuple[int, ...], dtype: Any = np.float32) -> list[Any]:
    """JAX arrays that spread the softmax: scores have a deviation of 3 where D is 16."""
    import jax.numpy as jnp

    rng = np.random.default_rng(seed)
    return [jnp.asarray((3**0.5 * rng.standard_normal(s)).astype(dtype)) for s in shapes]


# --- our arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_every_argument_means_what_it_means_to_numpy(names: tuple[str, ...], dtype: str) -> None:
    import jax

    from metal_sdpa.integrations.jax import sdpa

    seed = (22, len(names), sum(map(ord, "".join(names))))
    problem = feature_problem(seed, names, dtype=dtype, regime="chunk", dense=True, small=True)
    arrays, static = split(problem)
    jitted = jax.jit(lambda qkv, named: sdpa(*qkv, **named, **static, return_lse=True))
    out, lse = (np.asarray(x) for x in jitted(problem.arrays(), arrays))
    reference = problem.reference()
    assert accuracy.output_errors(out, reference, dtype).max() <= 1
    assert accuracy.lse_errors(lse, reference).max() <= 1
    wanted = metal_sdpa.sdpa(*problem.arrays(), **problem.call, return_lse=True)
    assert same_bits(out, wanted[0])
    assert same_bits(lse, wanted[1])


def split(problem: FeatureProblem) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments that JAX traces, and those that are part of the program."""
    traced = (
        "mask",
        "sinks",
        "alibi_slopes",
        "q_start",
        "kv_lengths",
        "kv_starts",
        "query_lengths",
    )
    arrays = {n: np.asarray(x) for n, x in problem.call.items() if n in traced}
    return arrays, {n: x for n, x in problem.call.items() if n not in traced}


def test_a_decode_step_is_compiled_once() -> None:
    import jax

    from metal_sdpa.integrations.jax import sdpa

    q, k, v = normal(1, (1, 4, 1, 16), (1, 2, 40, 16), (1, 2, 40, 16))
    traces = []

    @jax.jit
    def step(q: Any, k: Any, v: Any, n: Any) -> Any:
        traces.append(n)
        return sdpa(q, k, v, kv_lengths=n, causal=True, q_start=n - 1)

    for n in (1, 2, 39, 40):
        wanted = metal_sdpa.sdpa(*map(np.asarray, (q, k[:, :, :n], v[:, :, :n])), causal=True)
        assert same_bits(np.asarray(step(q, k, v, n)), wanted)
    assert len(traces) == 1
    # Python numbers do not become part of the program either.
    before = sdpa_traces()
    for n in (3, 4, 5):
        sdpa(q, k, v, kv_lengths=n)
    assert sdpa_traces() <= before + 1


def sdpa_traces() -> int:
    from metal_sdpa.integrations import jax as ours

    return ours._traced._cache_size()


# --- JAX's arguments -----------------------------------------------------------------------------

B, T, S, N, K, H = 2, 5, 9, 4, 2, 16

JAX_CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "bias": {"bias": (B, N, T, S)},
    "bias of one row": {"bias": (1, 1, 1, S)},
    "mask": {"mask": (B, 1, T, S)},
    "mask of each head": {"mask": (1, N, T, S)},
    "bias and mask": {"bias": (1, N, T, S), "mask": (B, 1, T, S), "is_causal": True},
    "key lengths": {"key_value_seq_lengths": [3, 9]},
    "lengths out of range": {"key_value_seq_lengths": [4, 99], "query_seq_lengths": [-1, 77]},
    "query lengths": {"query_seq_lengths": [2, 5], "is_causal": True},
    "window": {"local_window_size": 2},
    "window sides": {"local_window_size": (3, 1)},
    "window and causal": {"local_window_size": (1, 4), "is_causal": True},
}


# Halves differ from f32 in no argument: a few will do.
HALVES = ("bias and mask", "query lengths", "window and causal")
JAX_CASES = [(name, dtype) for name in JAX_CALLS for dtype in DTYPES if dtype == "f32"]
JAX_CASES += [(name, dtype) for name in HALVES for dtype in DTYPES if dtype != "f32"]


@pytest.mark.parametrize(("name", "dtype"), JAX_CASES)
def test_dot_product_attention_is_jaxs(name: str, dtype: str) -> None:
    """Against JAX in float64, of the same rounded inputs."""
    import jax

    from metal_sdpa.integrations.jax import dot_product_attention

    call, arrays = jax_call(name), normal(2, (B, T, N, H), (B, S, K, H), (B, S, K, H))
    arrays = [x.astype(DTYPES[dtype]) for x in arrays]
    out, residual = dot_product_attention(*arrays, **call, return_residual=True)
    assert out.dtype == residual.dtype == arrays[0].dtype
    assert same_bits(np.asarray(out), np.asarray(dot_product_attention(*arrays, **call)))
    with jax.enable_x64(True):
        doubles = [jax.numpy.asarray(np.asarray(x).astype(np.float64)) for x in arrays]
        wanted, wanted_residual = jax.nn.dot_product_attention(
            *doubles, **call, return_residual=True
        )
        wanted, wanted_residual = np.asarray(wanted), np.asarray(wanted_residual)
    # f32 arithmetic on scores up to some 40 with values up to 6, then one rounding to the dtype.
    unit = accuracy.UNIT[dtype]
    rows = query_rows(call)
    np.testing.assert_allclose(
        np.asarray(out).astype(np.float64), wanted, rtol=unit, atol=6 * (2e-6 + unit)
    )
    assert not np.asarray(out)[~rows].any()
    np.testing.assert_allclose(
        np.asarray(residual).astype(np.float64)[rows], wanted_residual[rows],
        rtol=2 * unit, atol=2e-5,
    )  # fmt: skip


def jax_call(name: str) -> dict[str, Any]:
    rng = np.random.default_rng(len(name))
    made = dict(JAX_CALLS[name])
    if "bias" in made:
        made["bias"] = rng.standard_normal(made["bias"]).astype(np.float32)
    if "mask" in made:
        made["mask"] = rng.random(made["mask"]) < 0.6
        made["mask"][..., 0] = True
    for lengths in ("query_seq_lengths", "key_value_seq_lengths"):
        if lengths in made:
            made[lengths] = np.array(made[lengths], np.int32)
    return made


def query_rows(call: dict[str, Any]) -> np.ndarray:
    """[B, T]: rows in use."""
    lengths = call.get("query_seq_lengths", np.full(B, T))
    return np.arange(T) < np.asarray(lengths)[:, None]


def test_without_a_batch_axis() -> None:
    import jax

    from metal_sdpa.integrations.jax import dot_product_attention

    q, k, v = normal(3, (T, N, H), (S, K, H), (S, K, H))
    mask = np.random.default_rng(0).random((N, T, S)) < 0.7
    mask[..., 0] = True
    for call in ({}, {"mask": mask}, {"key_value_seq_lengths": np.array([4], np.int32)}):
        got = dot_product_attention(q, k, v, **call, return_residual=True)
        wanted = jax.nn.dot_product_attention(q, k, v, **call, return_residual=True)
        for ours, theirs in zip(got, wanted, strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_rows_that_see_no_key_are_0() -> None:
    from metal_sdpa.integrations.jax import dot_product_attention

    q, k, v = normal(4, (B, T, N, H), (B, S, K, H), (B, S, K, H))
    hidden = np.zeros((B, 1, T, S), bool)
    hidden[1] = True
    for call in ({"mask": hidden}, {"bias": np.where(hidden, 0, -np.inf).astype(np.float32)}):
        out, residual = dot_product_attention(q, k, v, **call, return_residual=True)
        assert not np.asarray(out)[0].any()
        assert np.isneginf(np.asarray(residual)[0]).all()
        assert np.asarray(out)[1].all()


# --- transformations -----------------------------------------------------------------------------


def reference(q: Any, k: Any, v: Any, **call: Any) -> np.ndarray:
    """[B, Hq, L, Dv] by the float64 oracle, of 4 dimensions without masks."""
    batch, length = q.shape[0], k.shape[2]
    lengths = np.broadcast_to(call.pop("kv_lengths", length), batch)
    causal = call.pop("causal", False)
    starts = lengths - q.shape[2]
    arrays = [np.asarray(x) for x in (q, k, v)]
    call.setdefault("scale", q.shape[-1] ** -0.5)
    return attention(*arrays, causal=causal, q_starts=starts, kv_lengths=lengths, **call).out


VMAPS: dict[str, tuple[dict[str, tuple[int, ...]], tuple[str, ...]]] = {
    # shapes of what has the axis of vmap in front, names of what has not
    "all": ({"q": (3, 2, 4, 5, 16), "k": (3, 2, 2, 9, 16), "v": (3, 2, 2, 9, 16)}, ()),
    "q only": ({"q": (3, 2, 4, 5, 16)}, ("k", "v")),
    "a mask": ({"mask": (3, 1, 1, 5, 9)}, ("q", "k", "v")),
    "all and a mask of the batch": (
        {
            "q": (3, 2, 4, 5, 16),
            "k": (3, 2, 2, 9, 16),
            "v": (3, 2, 2, 9, 16),
            "mask": (3, 2, 1, 5, 9),
        },
        (),
    ),
    "all and a mask that a batch shares": (
        {
            "q": (3, 2, 4, 5, 16),
            "k": (3, 2, 2, 9, 16),
            "v": (3, 2, 2, 9, 16),
            "mask": (3, 1, 4, 5, 9),
        },
        (),
    ),
    "all beside one mask": (
        {"q": (3, 2, 4, 5, 16), "k": (3, 2, 2, 9, 16), "v": (3, 2, 2, 9, 16)},
        ("mask", "kv_lengths", "alibi_slopes"),
    ),
    "sinks": ({"sinks": (3, 4)}, ("q", "k", "v")),
    "all and sinks": (
        {"q": (3, 2, 4, 5, 16), "k": (3, 2, 2, 9, 16), "v": (3, 2, 2, 9, 16), "sinks": (3, 4)},
        (),
    ),
    "lengths": (
        {"q": (3, 2, 4, 5, 16), "k": (3, 2, 2, 9, 16), "v": (3, 2, 2, 9, 16), "kv_lengths": (3, 2)},
        ("sinks",),
    ),
}
WHOLE = {
    "q": (2, 4, 5, 16),
    "k": (2, 2, 9, 16),
    "v": (2, 2, 9, 16),
    "mask": (2, 1, 5, 9),
    "sinks": (4,),
    "kv_lengths": (2,),
    "alibi_slopes": (4,),
}


def vmapped(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What has the axis in front, and what all share."""
    rng = np.random.default_rng(5)

    def made(argument: str, shape: tuple[int, ...]) -> np.ndarray:
        if argument == "mask":
            return rng.random(shape) < 0.6
        if argument == "kv_lengths":
            return rng.integers(1, 10, shape).astype(np.int32)
        return (3**0.5 * rng.standard_normal(shape)).astype(np.float32)

    mapped, shared = VMAPS[name]
    return (
        {n: made(n, shape) for n, shape in mapped.items()},
        {n: made(n, WHOLE[n]) for n in shared},
    )


@pytest.mark.parametrize("name", VMAPS)
def test_vmap_gives_the_bits_of_each(name: str, way: str) -> None:
    import jax

    from metal_sdpa.integrations.jax import sdpa

    mapped, shared = vmapped(name)
    both = jax.jit(jax.vmap(lambda x: sdpa(**x, **shared, causal=True, return_lse=True)))
    assert ("pure_callback" in str(jax.make_jaxpr(both)(mapped))) == (way == "callback")
    out, lse = (np.asarray(x) for x in both(mapped))
    for i in range(3):
        one = {n: x[i] for n, x in mapped.items()}
        wanted = metal_sdpa.sdpa(**one, **shared, causal=True, return_lse=True)
        assert same_bits(out[i], wanted[0])
        assert same_bits(lse[i], wanted[1])


@pytest.mark.parametrize("axes", [(1, 2), (4, 0)])
def test_vmap_of_vmap_over_any_axis(axes: tuple[int, int], way: str) -> None:
    import jax

    from metal_sdpa.integrations.jax import dot_product_attention as ours

    theirs = jax.nn.dot_product_attention
    (q,) = normal(6, (2, 3, 7, 4, 16))
    k, v = normal(7, (2, 3, 9, 2, 16), (2, 3, 9, 2, 16))
    q = np.moveaxis(np.asarray(q), (0, 1), axes)

    def twice(function: Callable[..., Any]) -> Callable[..., Any]:
        inner_axis = axes[1] - (axes[1] > axes[0])
        inner = jax.vmap(function, (inner_axis, 0, 0), 0)
        return jax.vmap(inner, (axes[0], 0, 0), 1)

    np.testing.assert_allclose(
        twice(ours)(q, k, v), twice(theirs)(q, k, v), rtol=2e-5, atol=2e-5
    )  # fmt: skip


def test_nothing_to_map_over(way: str) -> None:
    import jax
    import jax.numpy as jnp

    from metal_sdpa.integrations.jax import sdpa

    q, k = jnp.zeros((0, 1, 2, 3, 8)), jnp.zeros((0, 1, 2, 5, 8))
    assert jax.vmap(sdpa)(q, k, k).shape == (0, 1, 2, 3, 8)


def test_scan_and_dtypes(way: str) -> None:
    import jax
    import jax.numpy as jnp

    from metal_sdpa.integrations.jax import sdpa

    for dtype in (jnp.float32, jnp.float16, jnp.bfloat16):
        q, k, v = (x.astype(dtype) for x in normal(8, (1, 2, 3, 16), (1, 2, 9, 16), (1, 2, 9, 16)))

        @jax.jit
        def run(q: Any, k: Any, v: Any) -> Any:
            def step(q: Any, length: Any) -> Any:
                return (sdpa(q, k, v, kv_lengths=length),) * 2

            return jax.lax.scan(step, q, jnp.arange(1, 9))

        _, steps = run(q, k, v)
        for n, got in zip(range(1, 9), steps, strict=True):
            q = metal_sdpa.sdpa(*map(np.asarray, (q, k, v)), kv_lengths=n)
            assert same_bits(np.asarray(got), q)


def test_from_several_threads(way: str) -> None:
    """Large arrays, and computations that wait for each other."""
    import jax

    from metal_sdpa.integrations.jax import sdpa

    q, k = normal(9, (1, 4, 1, 16), (1, 4, 20_000, 16))
    many = jax.jit(lambda q, k: [sdpa(q + i, k * 2, k) for i in range(6)])
    wanted = [reference(np.asarray(q) + i, np.asarray(k) * 2, k) for i in range(6)]
    wrong: list[str] = []

    def work() -> None:
        for got, correct in zip(many(q, k), wanted, strict=True):
            if not np.allclose(got, correct, rtol=1e-4, atol=1e-4):
                wrong.append("differs")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert not wrong


DEVICES = """
import importlib
import jax, numpy as np
import metal_sdpa
from metal_sdpa.integrations import jax as ours

mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
q = np.random.default_rng(0).standard_normal((4, 2, 3, 8)).astype(np.float32)
wanted = metal_sdpa.sdpa(q, q, q)

def attend(q):
    return ours.sdpa(q, q, q)

spec = jax.sharding.PartitionSpec("x")
mapped = jax.jit(jax.shard_map(attend, mesh=mesh, in_specs=spec, out_specs=spec))(q)
assert len(mapped.sharding.device_set) == 2
np.testing.assert_array_equal(mapped, wanted)
sharded = jax.device_put(q, jax.sharding.NamedSharding(mesh, spec))
np.testing.assert_array_equal(jax.jit(attend)(sharded), wanted)
importlib.reload(ours)
np.testing.assert_array_equal(attend(q), wanted)
"""


def test_several_devices_and_a_module_that_is_reloaded() -> None:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", DEVICES], check=True, env=os.environ | flags)


def test_gradients_are_refused_and_never_zeros(way: str) -> None:
    import jax

    from metal_sdpa.integrations.jax import dot_product_attention, sdpa

    q, k, v = normal(10, (1, 3, 2, 16), (1, 3, 2, 16), (1, 3, 2, 16))
    for function in (sdpa, dot_product_attention, jax.jit(sdpa), jax.vmap(lambda q, k, v: sdpa(
        q[None], k[None], v[None])[0])):  # fmt: skip
        for i in range(3):
            with pytest.raises(metal_sdpa.Unsupported, match="sdpa: has no gradient"):
                jax.grad(lambda *x: function(*x).sum(), argnums=i)(q, k, v)  # noqa: B023
        with pytest.raises(metal_sdpa.Unsupported, match="sdpa: has no gradient"):
            jax.jvp(function, (q, k, v), (q, k, v))
        with pytest.raises(metal_sdpa.Unsupported, match="sdpa: has no gradient"):
            jax.linearize(function, q, k, v)

    def of_mask(mask: Any) -> Any:
        return sdpa(q, k, v, mask=mask).sum()

    with pytest.raises(metal_sdpa.Unsupported, match="sdpa: has no gradient"):
        jax.grad(of_mask)(np.zeros((3, 3), np.float32)[:2, :2])


def test_a_gradient_beside_attention_is_not_refused() -> None:
    import jax

    from metal_sdpa.integrations.jax import sdpa

    (q,) = normal(11, (1, 2, 3, 16))
    fixed = sdpa(q, q, q)
    gradient = jax.grad(lambda w: (w * sdpa(q, q, q)).sum())(q)
    assert same_bits(np.asarray(gradient), np.asarray(fixed))
    stopped = jax.grad(lambda w: (w * sdpa(*[jax.lax.stop_gradient(w)] * 3)).sum())(q)
    assert same_bits(np.asarray(stopped), np.asarray(fixed))


# --- its place in JAX ----------------------------------------------------------------------------


def test_jaxs_own_name_comes_here_while_enabled() -> None:
    import jax

    from metal_sdpa.integrations import jax as ours

    own = jax.nn.dot_product_attention
    q, k, v = normal(14, (B, T, N, H), (B, S, K, H), (B, S, K, H))
    hidden = np.zeros((1, 1, 1, S), bool)  # rows that see nothing are 0 only here

    def is_ours(**options: Any) -> bool:
        out = jax.nn.dot_product_attention(q, k, v, None, hidden, **options)
        return not np.asarray(out).any()

    ours.reset_stats()
    assert not is_ours()
    assert not ours.is_enabled()
    ours.enable()
    with ours.enabled():
        assert is_ours()
        assert is_ours(implementation="xla", scale=0.5)
    assert is_ours()
    assert ours.is_enabled()
    assert ours.stats() == ours.Stats(taken=3)
    ours.disable()
    ours.disable()
    assert not is_ours()
    assert jax.nn.dot_product_attention is own


def test_what_jax_keeps_while_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    from metal_sdpa.integrations import jax as ours

    q, k, v = normal(15, (B, T, N, H), (B, S, K, H), (B, S, K, H))
    wanted = jax.nn.dot_product_attention(q, k, v, scale=0.5)
    ours.reset_stats()
    with ours.enabled():
        with jax.enable_x64(True):
            doubles = [jax.numpy.asarray(x, np.float64) for x in (q, k, v)]
            out = jax.nn.dot_product_attention(*doubles, scale=0.5)
            assert out.dtype == np.float64
            np.testing.assert_allclose(out, wanted, rtol=2e-5, atol=2e-5)
        traced = jax.jit(lambda s: jax.nn.dot_product_attention(q, k, v, scale=s))(0.5)
        np.testing.assert_allclose(traced, wanted, rtol=2e-5, atol=2e-5)
        large = jax.numpy.ones((1, 2, 1, 1032))
        np.testing.assert_allclose(jax.nn.dot_product_attention(large, large, large), large)
        with pytest.raises(Exception, match=r"(?i)cudnn|cuda|gpu"):
            jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        np.testing.assert_allclose(
            jax.nn.dot_product_attention(q, k, v, scale=0.5), wanted, rtol=2e-5, atol=2e-5
        )
        monkeypatch.undo()
        with pytest.raises(metal_sdpa.Unsupported, match="has no gradient"):
            jax.grad(lambda q: jax.nn.dot_product_attention(q, k, v).sum())(q)
    reasons = ("dtype float64", "a traced scale", "a head of 1032", "implementation='cudnn'")
    assert set(ours.stats().fell_back) == {*reasons, "platform gpu"}
    assert ours.stats().last_reason == "platform gpu"


def test_fallbacks_of_many_reasons_are_counted_together() -> None:
    import types

    from metal_sdpa.integrations._route import Route

    module = types.SimpleNamespace(name=lambda x: x)
    route = Route(module, "name", lambda x: route.fall_back(f"reason {x}", x))
    with route.enabled():
        assert [module.name(i) for i in range(70)] == list(range(70))
        module.name(3)
    stats = route.counts.stats()
    assert len(stats.fell_back) == 65
    assert stats.fell_back["other reasons"] == 6
    assert stats.fell_back["reason 3"] == 2
    assert stats.last_reason == "reason 3"


# --- errors --------------------------------------------------------------------------------------


def test_errors_of_shapes_have_their_type_while_tracing() -> None:
    import jax

    from metal_sdpa.integrations.jax import dot_product_attention, sdpa

    q, k = normal(12, (1, 4, 3, 16), (1, 2, 5, 16))
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (metal_sdpa.InvalidArgument, "sdpa: k: head_dim 8", {"k": k[..., :8]}),
        (metal_sdpa.InvalidArgument, r"sdpa: q: shape \(4, 3, 16\), takes", {"q": q[0]}),
        (metal_sdpa.InvalidArgument, "sdpa: mask: ", {"mask": np.ones((1, 1, 1, 1, 5), bool)}),
        (metal_sdpa.InvalidArgument, "sdpa: mask: ", {"mask": np.ones((3, 6), bool)}),
        (metal_sdpa.InvalidArgument, "sdpa: sinks: ", {"sinks": np.ones(3, np.float32)}),
        (metal_sdpa.InvalidArgument, "sdpa: softcap: ", {"softcap": -1.0}),
        (metal_sdpa.InvalidArgument, "sdpa: scale: ", {"scale": float("nan")}),
        (metal_sdpa.InvalidArgument, "sdpa: kv_lengths: ", {"kv_lengths": [1, 2]}),
        (metal_sdpa.InvalidType, "sdpa: kv_lengths: dtype float32", {"kv_lengths": [1.0]}),
        (metal_sdpa.UnsupportedDType, "sdpa: q: dtype", {"q": q.astype(np.int32)}),
        (metal_sdpa.UnsupportedDType, "sdpa: ", {"k": k.astype(np.float16)}),
    ]
    for error, text, changes in cases:
        call = {"q": q, "k": k, "v": k} | changes
        with pytest.raises(error, match=text):
            sdpa(**call)
        with pytest.raises(error, match=text):
            jax.eval_shape(lambda call=call: sdpa(**call))
    with pytest.raises(metal_sdpa.Unsupported, match="scale: is traced"):
        jax.jit(lambda s: sdpa(q, k, k, scale=s))(0.5)
    with pytest.raises(metal_sdpa.Unsupported, match="implementation: 'cudnn', takes None"):
        dot_product_attention(q, k, k, implementation="cudnn")
    with pytest.raises(metal_sdpa.InvalidArgument, match="local_window_size: -1"):
        dot_product_attention(q, q, q, local_window_size=-1)
    with pytest.raises(metal_sdpa.InvalidType, match="mask: takes booleans"):
        dot_product_attention(q, q, q, mask=np.ones((1, 1, 4, 4), np.float32))
    with pytest.raises(metal_sdpa.InvalidArgument, match=r"takes \[B, T, N, H\]"):
        dot_product_attention(q, q[0], q)


def test_errors_of_numbers_end_the_computation(way: str) -> None:
    import jax

    from metal_sdpa.integrations.jax import sdpa

    (q,) = normal(13, (1, 2, 3, 16))
    step = jax.jit(lambda n: sdpa(q, q, q, kv_lengths=n))
    for _ in range(2):
        with pytest.raises(jax.errors.JaxRuntimeError, match="kv_lengths: 4, takes 0 to the 3"):
            step(4).block_until_ready()
        assert np.isfinite(step(3)).all()  # and the next one is fine


def test_an_unknown_interface_is_not_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    from metal_sdpa.integrations import _xla_ffi

    assert _xla_ffi.interface_version() in _xla_ffi.KNOWN_VERSIONS
    for version in ((0, 99), (1, 0), None):
        monkeypatch.setattr(_xla_ffi, "interface_version", lambda version=version: version)
        assert not _xla_ffi.register("metal_sdpa.test", lambda *_: None)


def test_inputs_are_xlas_own_memory() -> None:
    """What pure_callback cannot: nothing is copied, and nothing can be written."""
    import jax

    from metal_sdpa.integrations import _xla_ffi

    seen: list[Any] = []

    def look(call: str, arguments: list[np.ndarray], results: list[np.ndarray]) -> None:
        seen.append((call, arguments[0].ctypes.data, arguments[0].flags.writeable))
        results[0][...] = arguments[0].astype(np.float32).sum()

    assert _xla_ffi.register("metal_sdpa.test_memory", look)
    x = jax.numpy.arange(64, dtype=ml_dtypes.bfloat16)
    result = jax.ShapeDtypeStruct((2,), np.float32)
    got = jax.ffi.ffi_call("metal_sdpa.test_memory", result)(x, call="hello")
    assert got.tolist() == [2016.0] * 2
    assert seen == [("hello", x.unsafe_buffer_pointer(), False)]


def test_nothing_else_is_imported() -> None:
    code = (
        "import metal_sdpa, sys; assert 'jax' not in sys.modules;"
        "import metal_sdpa.integrations.jax;"
        "assert not {'torch', 'mlx', 'onnx', 'flax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
