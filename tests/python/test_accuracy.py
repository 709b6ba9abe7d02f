"""The bounds themselves: right answers rounded to the dtype pass, planted faults do not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import accuracy
from arrays import DTYPES, as_f64
from oracle import Reference, attention, merge, visibility
from problems import Problem, Shape, build_problem, random_problem

SEED = 7
# Values whose softmax is neither nearly uniform nor the same for every key order.
SPREAD = ("spread_rows", "peaked_rows", "query_near_key", "offset_values", "wide_values")


def rounded(reference: Reference, dtype: str) -> np.ndarray:
    return reference.out.astype(np.float32).astype(DTYPES[dtype])


def worst(problem: Problem, out: np.ndarray, reference: Reference) -> float:
    return float(accuracy.output_errors(out, reference, problem.dtype).max())


def causal_problem(dtype: str, family: str, shape: Shape) -> Problem:
    return build_problem(np.random.default_rng(11), shape, dtype=dtype, family=family)


def plain_mean(problem: Problem) -> np.ndarray:
    return problem.reference(scale=0.0).out


def later_by_one(problem: Problem) -> np.ndarray:
    return problem.reference(q_starts=problem.starts() + 1).out


def earlier_by_one(problem: Problem) -> np.ndarray:
    return problem.reference(q_starts=problem.starts() - 1).out


def hotter(problem: Problem) -> np.ndarray:
    return problem.reference(scale=problem.softmax_scale() * 1.44).out


def not_causal(problem: Problem) -> np.ndarray:
    return problem.reference(causal=False).out


def last_key_missing(problem: Problem) -> np.ndarray:
    return problem.reference(causal=False, kv_lengths=problem.lengths() - 1).out


def heads_interleaved(problem: Problem) -> np.ndarray:
    """Query head h reads KV head h % Hkv."""
    shape = problem.shape
    heads = np.arange(shape.Hq) % shape.Hkv
    return problem.reference(k=problem.k.view[:, heads], v=problem.v.view[:, heads]).out


def values_of_next_key(problem: Problem) -> np.ndarray:
    return problem.reference(v=np.roll(problem.v.view, 1, axis=2)).out


MUTANTS: tuple[Callable[[Problem], np.ndarray], ...] = (
    plain_mean,
    later_by_one,
    earlier_by_one,
    hotter,
    not_causal,
    last_key_missing,
    heads_interleaved,
    values_of_next_key,
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", SPREAD)
def test_the_bound_kills_mutants(dtype: str, family: str) -> None:
    # D 256 and L 128: a shape at which element-wise tolerances of 5e-3 pass a x1.44 temperature.
    problem = causal_problem(dtype, family, Shape(B=1, Hq=4, Hkv=2, L=128, S=128, D=256, Dv=64))
    reference = problem.reference()
    assert worst(problem, rounded(reference, dtype), reference) <= 1
    for mutant in MUTANTS:
        wrong = mutant(problem).astype(np.float32).astype(DTYPES[dtype])
        assert worst(problem, wrong, reference) > 3, f"{mutant.__name__} goes unnoticed"


def test_the_bound_kills_mutants_all_over_the_sweep() -> None:
    """A wrong temperature shows in most random problems; not where one key wins outright."""
    noticed = tried = 0
    for index in range(250):
        problem = random_problem(SEED, index)
        reference = problem.reference()
        can_show = problem.family in SPREAD and problem.scale != 0
        if not can_show or problem.shape.S < 2 or not (reference.magnitude > 0).any():
            continue
        pairs = visibility(
            problem.shape.L, problem.shape.S, problem.causal, problem.starts(), problem.lengths()
        )
        if pairs.sum(axis=2).max() < 2:
            continue
        tried += 1
        wrong = hotter(problem).astype(np.float32).astype(DTYPES[problem.dtype])
        noticed += worst(problem, wrong, reference) > 1
    assert tried > 40
    assert noticed >= 0.85 * tried, f"{noticed} of {tried}"


@pytest.mark.parametrize(("dtype", "narrower"), [("f32", "f16"), ("f32", "bf16"), ("f16", "bf16")])
def test_results_of_a_narrower_dtype_are_out_of_bounds(dtype: str, narrower: str) -> None:
    problem = causal_problem(dtype, "spread_rows", Shape(1, 2, 2, 33, 33, 64, 64))
    reference = problem.reference()
    assert worst(problem, rounded(reference, dtype), reference) <= 1
    assert worst(problem, rounded(reference, narrower), reference) > 1


def test_wrong_kinds_of_values_are_infinitely_wrong() -> None:
    problem = causal_problem("f32", "spread_rows", Shape(1, 1, 1, 4, 2, 8, 8))
    reference = problem.reference()  # rows 0 and 1 stand before key 0
    out = rounded(reference, "f32")
    assert worst(problem, out, reference) <= 1
    assert np.isneginf(reference.lse[0, 0]).tolist() == [True, True, False, False]
    for row, value in ((0, 1e-30), (1, np.nan), (2, np.nan), (3, np.inf)):
        changed = out.copy()
        changed[0, 0, row, 3] = value
        assert accuracy.output_errors(changed, reference, "f32")[0, 0, row] == np.inf
    lse = reference.lse.astype(np.float32)
    assert accuracy.lse_errors(lse, reference).max() <= 1
    for row, value in ((0, 0.0), (1, np.nan), (2, -np.inf), (3, lse[0, 0, 3] + 1e-4)):
        changed = lse.copy()
        changed[0, 0, row] = value
        assert accuracy.lse_errors(changed, reference)[0, 0, row] > 1


def test_the_oracle_against_a_loop_over_elements() -> None:
    """The oracle itself, against the definition written as a loop."""
    for index in range(12):
        problem = random_problem(SEED, 1000 + index)
        reference = problem.reference()
        q, k, v = problem.arrays()
        shape, scale = problem.shape, problem.softmax_scale()
        rng = np.random.default_rng(index)
        b, h, i = (int(rng.integers(n)) for n in (shape.B, shape.Hq, shape.L))
        kv_head = h // (shape.Hq // shape.Hkv)
        position = int(problem.starts()[b]) + i
        seen = [j for j in range(int(problem.lengths()[b])) if not problem.causal or j <= position]
        query = as_f64(q[b, h, i])
        logits = [scale * sum(query * as_f64(k[b, kv_head, j])) for j in seen]
        if not seen:
            assert reference.lse[b, h, i] == -np.inf
            assert not reference.out[b, h, i].any()
            continue
        top = max(logits)
        total = sum(np.exp(x - top) for x in logits)
        weights = [np.exp(x - top) / total for x in logits]
        row = sum(w * as_f64(v[b, kv_head, j]) for w, j in zip(weights, seen, strict=True))
        np.testing.assert_allclose(reference.out[b, h, i], row, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(reference.lse[b, h, i], top + np.log(total), rtol=1e-12)


def test_the_merge_law_of_the_oracle() -> None:
    problem = causal_problem("f32", "spread_rows", Shape(1, 2, 1, 5, 40, 16, 8))
    q, k, v = problem.arrays()
    arguments = {"scale": 0.3, "causal": False, "q_starts": np.zeros(1, int)}
    parts = [
        attention(q, k[:, :, a:b], v[:, :, a:b], kv_lengths=np.array([b - a]), **arguments)
        for a, b in ((0, 7), (7, 8), (8, 40))
    ]
    whole = attention(q, k, v, kv_lengths=np.array([40]), **arguments)
    out, lse = merge(parts)
    np.testing.assert_allclose(out, whole.out, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(lse, whole.lse, rtol=1e-13)
