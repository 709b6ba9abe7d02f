"""Masks, windows, softcap, sinks, ALiBi, starts: every two against float64, and their laws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import accuracy
import metal_sdpa
from arrays import DTYPES, Strided, bits, same_bits
from features import FEATURES, REGIMES, FeatureProblem, feature_problem, pairs, seen_keys
from oracle import attention
from problems import Limits, Shape
from targets import Target, selected_targets, sweep_seed

SEED = sweep_seed()
PAIRS = pairs()


def groups() -> list[tuple[Limits, list[Target]]]:
    """Targets that take problems of the same size."""
    targets = selected_targets()
    return [
        (limits, [t for t in targets if t.limits == limits])
        for limits in dict.fromkeys(t.limits for t in targets)
    ]


def run(problem: FeatureProblem, target: Target, **changes: object) -> tuple[np.ndarray, ...]:
    call = problem.call | {"device": target.device(threads=2)} | changes
    if call.get("out") is not None:
        call["out"] = np.full_like(call["out"], np.nan)
    return metal_sdpa.sdpa(*problem.arrays(), **call, return_lse=True)


def check(problem: FeatureProblem, targets: list[Target]) -> None:
    reference = problem.reference()
    for target in targets:
        out, lse = run(problem, target)
        errors = accuracy.output_errors(out, reference, problem.out_dtype())
        assert errors.max(initial=0) <= 1, f"{target}: {errors.max():.3f} bounds off: {problem}"
        errors = accuracy.lse_errors(lse, reference)
        assert errors.max(initial=0) <= 1, f"{target}: lse {errors.max():.3f} bounds off: {problem}"


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_every_two_features(first: str, second: str) -> None:
    index = PAIRS.index((first, second))
    for _, targets in groups():
        small = targets[0].kind != "cpu"
        cases = itertools.product(enumerate(DTYPES), enumerate(REGIMES))
        for (i, dtype), (j, regime) in cases:
            dense = (i + j + index) % 2 == 0
            if small and (i + j + index) % 3:  # every dtype with every regime over three pairs
                continue
            seed = (SEED, index, i, j)
            problem = feature_problem(
                seed, (first, second), dtype=dtype, regime=regime, dense=dense, small=small
            )
            check(problem, targets)


@settings(
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    names=st.sets(st.sampled_from(list(FEATURES))),
    dtype=st.sampled_from(list(DTYPES)),
    regime=st.sampled_from(REGIMES),
    dense=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_any_features(names: set[str], dtype: str, regime: str, dense: bool, seed: int) -> None:
    for _, targets in groups():
        small = targets[0].kind != "cpu"
        ordered = sorted(names)
        problem = feature_problem(
            (seed,), ordered, dtype=dtype, regime=regime, dense=dense, small=small
        )
        check(problem, targets)


# --- equal bits ----------------------------------------------------------------------------------


def plain_problem(target: Target, regime: str, dtype: str = "f32", seed: int = 0) -> FeatureProblem:
    small = target.kind != "cpu"
    return feature_problem((SEED, 5, seed), (), dtype=dtype, regime=regime, dense=True, small=small)


def nothing_of(shape: Shape) -> dict[str, dict]:
    """Arguments that change nothing."""
    all_true = np.ones((shape.B, shape.Hq, shape.L, shape.S), bool)
    return {
        "window": {"window": (10**6, 10**6)},
        "endless_window": {"window": (2**61, None)},
        "all_true_mask": {"mask": all_true},
        "true": {"mask": np.array(True)},
        "zero_bias": {"mask": np.zeros((shape.L, shape.S), np.float16)},
        "kv_starts": {"kv_starts": 0},
        "query_lengths": {"query_lengths": [shape.L] * shape.B},
        "key_positions": {"key_offset": 0, "key_stride": 1},
        "none": {"softcap": None, "mask": None, "window": None, "sinks": None},
    }


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", nothing_of(Shape(1, 1, 1, 1, 1, 1, 1)))
def test_features_that_change_nothing_leave_the_bits(
    target: Target, name: str, causal: bool, regime: str
) -> None:
    for dtype in DTYPES:
        problem = plain_problem(target, regime, dtype)
        plain = run(problem, target, causal=causal)
        got = run(problem, target, causal=causal, **nothing_of(problem.shape)[name])
        for one, other in zip(plain, got, strict=True):
            assert same_bits(one, other), f"{dtype} {problem}"


def test_a_window_wider_than_the_cache_is_causal(target: Target) -> None:
    for regime in REGIMES:
        problem = plain_problem(target, regime)
        causal = run(problem, target, causal=True)
        wide = run(problem, target, window=problem.shape.S + problem.shape.L)
        assert all(map(same_bits, causal, wide))


def test_a_window_is_a_mask(target: Target) -> None:
    """Within the bounds of the same reference: the kernels may differ."""
    problem = plain_problem(target, "prefill")
    shape = problem.shape
    behind = np.arange(shape.S) - (np.arange(shape.L) + shape.S - shape.L)[:, None]
    mask = (behind <= 0) & (behind > -7)
    for call in ({"window": 7}, {"mask": mask}, {"window": (6, 0), "mask": mask}):
        problem.call |= call
        check(problem, [target])


def test_query_lengths_give_the_bits_of_fewer_queries(target: Target) -> None:
    for regime in ("prefill", "chunk"):
        problem = plain_problem(target, regime)
        q, k, v = problem.arrays()
        n = problem.shape.L // 2
        out, lse = run(problem, target, causal=True, query_lengths=n)
        device = target.device(threads=2)
        scale = problem.call["scale"]
        short = metal_sdpa.sdpa(
            q[:, :, :n], k, v, causal=True, scale=scale, return_lse=True, device=device
        )
        assert same_bits(out[:, :, :n], short[0])
        assert same_bits(lse[:, :, :n], short[1])
        assert not bits(out[:, :, n:]).any()
        assert np.isneginf(lse[:, :, n:]).all()


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_an_f32_out_rounds_to_the_other(target: Target, dtype: str) -> None:
    for regime in REGIMES:
        problem = plain_problem(target, regime, dtype)
        wide = np.empty(run(problem, target)[0].shape, np.float32)
        exact, lse = run(problem, target, out=wide)
        rounded, plain_lse = run(problem, target)
        assert exact.dtype == np.float32
        if target.rounds_weights(dtype):
            assert np.allclose(exact, rounded.astype(np.float32), rtol=2**-6, atol=2**-6)
            continue
        assert same_bits(exact.astype(DTYPES[dtype]), rounded)
        assert same_bits(lse, plain_lse)


@pytest.mark.parametrize(
    "names", [("window", "sinks"), ("alibi", "kv_starts"), ("bias", "softcap")]
)
@pytest.mark.parametrize("regime", REGIMES)
def test_a_sequence_alone_has_the_same_bits(
    target: Target, names: tuple[str, str], regime: str
) -> None:
    small = target.kind != "cpu"
    problem = feature_problem((SEED, 6), names, dtype="f32", regime=regime, dense=True, small=small)
    out, lse = run(problem, target)
    for b in range(problem.shape.B):
        call = {name: alone(value, b, problem.shape) for name, value in problem.call.items()}
        arrays = (x[b : b + 1] for x in problem.arrays())
        one = metal_sdpa.sdpa(*arrays, **call, return_lse=True, device=target.device(threads=1))
        assert same_bits(one[0][0], out[b]), problem
        assert same_bits(one[1][0], lse[b]), problem


def alone(value: object, b: int, shape: Shape) -> object:
    """An argument's share of sequence b."""
    if isinstance(value, list):
        return value[b]
    if not isinstance(value, np.ndarray):
        return value
    per_sequence = value.ndim == 4 or value.shape in ((shape.B,), (shape.B, shape.Hq))
    if value.ndim == 0 or not per_sequence or value.shape[0] != shape.B:
        return value
    return value[b : b + 1] if value.ndim > 1 else int(value[b])


# --- what is hidden, and what is not --------------------------------------------------------------


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("regime", REGIMES)
def test_a_row_is_touched_by_the_keys_that_it_sees_only(
    target: Target, regime: str, poison: float
) -> None:
    """One key and its value are poisoned: rows that see it are NaN, the others as without it."""
    hiding = ("causal", "window", "bool_mask", "kv_starts")
    for index, name in enumerate(hiding):
        problem = feature_problem(
            (SEED, 7, index), (name,), dtype="f32", regime=regime, dense=True, small=True
        )
        reference = problem.reference()
        key = problem.shape.S // 2
        seen = seen_rows(problem, key)
        problem.k.view[:, :, key] = np.nan
        problem.v.view[:, :, key] = poison
        out, _ = run(problem, target)
        errors = accuracy.output_errors(out, reference, "f32")
        assert errors[~seen].max(initial=0) <= 1, problem
        assert np.isnan(out[seen]).all(), problem


def seen_rows(problem: FeatureProblem, key: int) -> np.ndarray:
    """[B, Hq, L]: rows that see the key."""
    marked = np.zeros(problem.v.view.shape, np.float64)
    marked[:, :, key] = 1
    q, k, _ = problem.arrays()
    clean = (np.nan_to_num(x, nan=0, posinf=0, neginf=0) * 0 for x in (q, k))

    mask = problem.call.get("mask")
    weights = attention(
        *clean, marked, scale=1, mask=mask, **seen_keys(problem.call, problem.shape)
    )
    return weights.out[..., 0] > 0


def test_nan_in_a_mask_at_a_visible_key_gives_a_nan_row(target: Target) -> None:
    q, k, v = (np.ones((1, 2, 3, 8), np.float32) for _ in range(3))
    for value in (np.nan, np.inf):
        mask = np.zeros((3, 3), np.float32)
        mask[1, 0] = value
        mask[1, 2] = np.nan  # hidden by causality
        mask[0, 1] = np.nan
        out, lse = metal_sdpa.sdpa(
            q, k, v, causal=True, mask=mask, return_lse=True, device=target.device()
        )
        assert np.isnan(out[:, :, 1]).all()
        assert np.isnan(lse[:, :, 1]).all() or value == np.inf
        np.testing.assert_allclose(out[:, :, ::2], 1, rtol=0, atol=2**-22)


def test_a_lowest_finite_bias_is_a_number(target: Target) -> None:
    """A row whose visible keys all have it gives the mean; beside others it weighs nothing."""
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((1, 1, 5, 16), np.float32) for _ in range(3))
    lowest = np.finfo(np.float32).min
    mask = np.full((5, 5), lowest)
    mask[1, 2:] = 0
    out = metal_sdpa.sdpa(q, k, v, mask=mask, device=target.device())
    np.testing.assert_allclose(out[0, 0, 0], v[0, 0].mean(axis=0), atol=1e-6)
    alone = metal_sdpa.sdpa(q[:, :, 1:2], k[:, :, 2:], v[:, :, 2:], device=target.device())
    np.testing.assert_allclose(out[0, 0, 1], alone[0, 0, 0], atol=1e-6)


def test_a_sink_beside_lowest_biases_takes_the_row(target: Target) -> None:
    """Padding of eager models: the lowest number in a mask, and a sink of ordinary size."""
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((1, 2, 70, 16), np.float32) for _ in range(3))
    mask = np.full((70, 70), np.finfo(np.float32).min)
    mask[5:, :9] = 0
    sinks = np.array([-3.0, 1e4], np.float32)
    call = {"sinks": sinks, "return_lse": True, "device": target.device()}
    out, lse = metal_sdpa.sdpa(q, k, v, mask=mask, **call)
    assert (out[:, :, :5] == 0).all()  # of either sign: values times weights too small for a float
    np.testing.assert_allclose(lse[0, :, :5], np.repeat(sinks[:, None], 5, axis=1), rtol=1e-6)
    seen, seen_lse = metal_sdpa.sdpa(q[:, :, 5:], k[:, :, :9], v[:, :, :9], **call)
    np.testing.assert_allclose(out[:, :, 5:], seen, atol=1e-6)
    np.testing.assert_allclose(lse[:, :, 5:], seen_lse, rtol=1e-6)


@pytest.mark.parametrize("value", [False, True, 0.0, -np.inf, 1.5])
def test_masks_whose_key_axis_is_broadcast(target: Target, value: float) -> None:
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((1, 2, 70, 16), np.float32) for _ in range(3))
    column = np.full((70, 1), value, bool if isinstance(value, bool) else np.float32)
    column[::3] = True if isinstance(value, bool) else 0
    whole = np.repeat(column, 70, axis=1)
    device = target.device()
    np.testing.assert_array_equal(
        metal_sdpa.sdpa(q, k, v, mask=column, device=device),
        metal_sdpa.sdpa(q, k, v, mask=whole, device=device),
    )


def test_a_row_without_a_key_is_zero_and_its_lse_the_sink(target: Target) -> None:
    q = np.ones((2, 2, 3, 8), np.float32)
    hidden = np.zeros((2, 1, 3, 3), bool)
    hidden[0] = True
    sinks = np.array([-1.5, 2.0], np.float32)
    call = {"mask": hidden, "return_lse": True, "device": target.device()}
    out, lse = metal_sdpa.sdpa(q, q, q, **call)
    assert not bits(out[1]).any()
    assert np.isneginf(lse[1]).all()
    out, lse = metal_sdpa.sdpa(q, q, q, sinks=sinks, **call)
    assert not bits(out[1]).any()
    assert (lse[1] == sinks[:, None]).all()
    assert (out[0] < 1).all()


@pytest.mark.parametrize("edge", [1, 15, 16, 17, 63, 64, 65, 2047, 2048, 2049, 4095, 4096, 4097])
@pytest.mark.parametrize("L", [1, 5])
def test_windows_whose_ends_stand_at_span_edges(target: Target, edge: int, L: int) -> None:
    if target.kind != "cpu" and edge > 70:
        pytest.skip("the software device takes a minute for as many keys")
    rng = np.random.default_rng(edge)
    S = min(edge + 70, 4200)
    q = rng.standard_normal((1, 2, L, 32), np.float32)
    k, v = (rng.standard_normal((1, 1, S, 32), np.float32) for _ in range(2))
    for window in ((S - edge, 0), (S - edge - 1, None), (edge, 0)):
        call = {"window": window, "scale": 0.2, "q_start": S - L}
        shape = Shape(1, 2, 1, L, S, 32, 32)
        packed = [_as_strided(x) for x in (q, k, v)]
        check(FeatureProblem(f"edge {edge}", shape, "f32", *packed, call), [target])


def _as_strided(array: np.ndarray) -> Strided:
    return Strided(array, array, np.zeros(0, np.int64))


def test_features_are_what_they_say() -> None:
    """The oracle with a fault in one feature is outside of the bounds: the problems do tell."""
    faults = {
        "softcap": {"softcap": None},
        "sinks": {"sinks": None},
        "alibi": {"slopes": None},
        "bias": {"mask": None},
        "bool_mask": {"mask": None},
        "kv_starts": {"kv_starts": None},
        "window": {"window": (-1, 0)},
        "shard": {"key_offset": 11},
    }
    for index, (name, fault) in enumerate(faults.items()):
        told = False
        for seed in range(20):
            problem = feature_problem(
                (SEED, 8, index, seed), (name,), dtype="f32", regime="chunk", dense=True, small=True
            )
            if name == "shard":
                problem.call["causal"] = True
            clean = [np.nan_to_num(x, nan=1, posinf=1, neginf=1) for x in problem.arrays()]
            for array, values in zip((problem.q, problem.k, problem.v), clean, strict=True):
                array.view[...] = np.clip(values, -100, 100)
            right, wrong = problem.reference(), problem.reference(**fault)
            told = accuracy.output_errors(wrong.out, right, "f32").max() > 1
            if told:
                break
        assert told, name
