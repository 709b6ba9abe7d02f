"""Laws of attention, on problems that hypothesis chooses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import accuracy
import metal_sdpa
from arrays import DTYPES, as_f64, same_bits
from oracle import Reference, merge
from problems import FAMILIES, Problem, Shape, build_problem
from targets import Target

settings.register_profile(
    "metal_sdpa",
    deadline=None,  # the first call on a device compiles its kernels
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("metal_sdpa")

LENGTHS = st.one_of(st.integers(1, 40), st.sampled_from((15, 16, 17, 31, 32, 33, 63, 64, 65)))


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    Hkv = draw(st.integers(1, 3))
    D = draw(st.one_of(st.integers(1, 24), st.sampled_from((32, 33, 64, 80, 128))))
    return Shape(
        B=draw(st.integers(1, 3)),
        Hq=Hkv * draw(st.sampled_from((1, 1, 2, 3, 5))),
        Hkv=Hkv,
        L=draw(st.one_of(st.just(1), LENGTHS.map(lambda n: min(n, 33)))),
        S=draw(LENGTHS),
        D=D,
        Dv=draw(st.one_of(st.just(D), st.integers(1, 24))),
    )


@st.composite
def problems(draw: st.DrawFn, **fixed: object) -> Problem:
    shape = draw(shapes())
    choices = {
        "dtype": st.sampled_from(list(DTYPES)),
        "family": st.sampled_from(list(FAMILIES)),
        "causal": st.booleans(),
        "scale": st.one_of(st.none(), st.sampled_from((1.0, -0.25, 0.0))),
        "q_start": st.one_of(
            st.none(),
            st.integers(-shape.L - 2, shape.S + 2),
            st.lists(st.integers(-40, 80), min_size=shape.B, max_size=shape.B),
        ),
        "kv_lengths": st.one_of(
            st.none(),
            st.integers(0, shape.S),
            st.lists(st.integers(0, shape.S), min_size=shape.B, max_size=shape.B),
        ),
    }
    drawn = {name: draw(choice) for name, choice in choices.items() if name not in fixed}
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return build_problem(rng, shape, **drawn, **fixed)


def run(target: Target, problem: Problem, **changes: object) -> tuple[np.ndarray, np.ndarray]:
    arrays = [changes.pop(name, x) for name, x in zip("qkv", problem.arrays(), strict=True)]
    arguments = problem.arguments() | {"device": target.device()} | changes
    return metal_sdpa.sdpa(*arrays, **arguments, return_lse=True)


def assert_near(problem: Problem, reference: Reference, out: np.ndarray, lse: np.ndarray) -> None:
    assert accuracy.output_errors(out, reference, problem.dtype).max() <= 1
    assert accuracy.lse_errors(lse, reference).max() <= 1


@given(problem=problems())
def test_every_problem_is_within_the_bounds(target: Target, problem: Problem) -> None:
    assert_near(problem, problem.reference(), *run(target, problem))


@given(problem=problems(), data=st.data())
def test_permuting_the_batch_permutes_the_bits(
    target: Target, problem: Problem, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(problem.shape.B)))
    out, lse = run(target, problem)
    permuted, permuted_lse = run(
        target,
        problem,
        **{n: np.array(x[order], order="C") for n, x in zip("qkv", problem.arrays(), strict=True)},
        q_start=problem.starts()[order],
        kv_lengths=problem.lengths()[order],
    )
    assert same_bits(permuted, out[order])
    assert same_bits(permuted_lse, lse[order])


@given(problem=problems(dtype="f32"), exponent=st.integers(-8, 8))
def test_scaling_v_by_a_power_of_two_scales_the_bits(
    target: Target, problem: Problem, exponent: int
) -> None:
    factor = np.float32(2.0**exponent)
    out, lse = run(target, problem)
    with np.errstate(over="ignore", invalid="ignore"):  # of poison
        v = problem.v.view
        scaled, scaled_lse = run(target, problem, v=np.multiply(v, factor, order="C"))
    assert same_bits(scaled, out * factor)
    assert same_bits(scaled_lse, lse)


@given(problem=problems(q_start=None, kv_lengths=None, causal=True))
def test_a_causal_row_is_full_attention_over_its_prefix(target: Target, problem: Problem) -> None:
    out, lse = run(target, problem)
    for i in range(problem.shape.L):
        length = max(problem.shape.S - problem.shape.L + i + 1, 0)
        full, full_lse = run(target, problem, causal=False, kv_lengths=length)
        reference = problem.reference()
        difference = np.linalg.norm(as_f64(full[:, :, i]) - as_f64(out[:, :, i]), axis=2)
        bound = 2 * accuracy.output_bound(reference, problem.dtype)[:, :, i]
        assert (difference <= bound).all()
        if length > 0:
            gap = np.abs(as_f64(full_lse[:, :, i]) - as_f64(lse[:, :, i]))
            assert (gap <= 2 * accuracy.lse_bound(reference)[:, :, i]).all()


@given(problem=problems(causal=False, kv_lengths=None), data=st.data())
def test_merging_disjoint_key_sets_by_lse_gives_attention_over_all(
    target: Target, problem: Problem, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(problem.shape.S - 1, 1)), max_size=4)))
    edges = [0, *(cut for cut in cuts if cut < problem.shape.S), problem.shape.S]
    parts = []
    _, k, v = problem.arrays()
    for begin, end in itertools.pairwise(edges):
        out, lse = run(target, problem, k=k[:, :, begin:end], v=v[:, :, begin:end])
        parts.append(Reference(as_f64(out), as_f64(lse), out, lse, lse))
    out, lse = merge(parts)
    reference = problem.reference()
    # Each part errs by its own bound, and merging weighs it by its share: at most two bounds.
    error = np.linalg.norm(out - reference.out, axis=3)
    slack = 2 * accuracy.F32_UNIT * (1 + np.abs(reference.lse)) * reference.magnitude
    assert (error <= 2 * accuracy.output_bound(reference, problem.dtype) + slack).all()
    assert (np.abs(lse - reference.lse) <= 2 * accuracy.lse_bound(reference)).all()


@given(problem=problems(causal=False), data=st.data())
def test_the_order_of_keys_does_not_matter(
    target: Target, problem: Problem, data: st.DataObject
) -> None:
    length = int(problem.lengths().min())
    order = np.arange(problem.shape.S)
    order[:length] = data.draw(st.permutations(range(length)))
    k, v = (np.ascontiguousarray(x[:, :, order]) for x in problem.arrays()[1:])
    out, lse = run(target, problem, k=k, v=v)
    assert_near(problem, problem.reference(), out, lse)


@given(problem=problems(causal=True), data=st.data())
def test_keys_that_no_query_sees_leave_the_bits(
    target: Target, problem: Problem, data: st.DataObject
) -> None:
    """Slots past the length hold anything at all; values of hidden keys are finite."""
    out, lse = run(target, problem)
    anything = st.sampled_from((np.nan, np.inf, -np.inf, 6e4, -6e4))
    k, v = (np.array(x, order="C") for x in problem.arrays()[1:])
    for b in range(problem.shape.B):
        length = int(problem.lengths()[b])
        last_seen = int(problem.starts()[b]) + problem.shape.L - 1
        first_unseen = max(min(last_seen + 1, length), 0)
        k[b, :, first_unseen:] = data.draw(anything)
        v[b, :, first_unseen:length] = data.draw(st.sampled_from((6e4, -6e4)))
        v[b, :, length:] = data.draw(anything)
    again, again_lse = run(target, problem, k=k, v=v)
    assert same_bits(again, out)
    assert same_bits(again_lse, lse)


@given(problem=problems(causal=True, q_start=None, kv_lengths=None), data=st.data())
def test_a_key_reaches_the_rows_at_and_after_it_only(
    target: Target, problem: Problem, data: st.DataObject
) -> None:
    key = data.draw(st.integers(0, problem.shape.S - 1))
    out, _ = run(target, problem)
    v = np.array(problem.v.view, order="C")
    v[:, :, key] = 6e4
    changed, _ = run(target, problem, v=v)
    positions = problem.shape.S - problem.shape.L + np.arange(problem.shape.L)
    before = positions < key
    assert same_bits(changed[:, :, before], out[:, :, before])


@given(problem=problems(causal=True))
def test_a_nan_in_a_query_stays_in_its_row(target: Target, problem: Problem) -> None:
    out, _ = run(target, problem)
    q = np.array(problem.q.view, order="C")
    row = problem.shape.L // 2
    q[0, 0, row, -1] = np.nan
    spoiled, lse = run(target, problem, q=q)
    seen = problem.reference().magnitude[0, 0, row] > 0 or not np.isneginf(lse[0, 0, row])
    others = np.ones(out.shape[:3], bool)
    others[0, 0, row] = False
    assert same_bits(spoiled[others], out[others])
    if seen:
        assert np.isnan(as_f64(spoiled[0, 0, row])).all()
        assert np.isnan(lse[0, 0, row])


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_grouped_heads_are_repeated_kv_heads(
    target: Target, dtype: str, data: st.DataObject
) -> None:
    problem = data.draw(problems(dtype=dtype))
    group = problem.shape.Hq // problem.shape.Hkv
    k, v = (np.repeat(x, group, axis=1) for x in problem.arrays()[1:])
    out, lse = run(target, problem, k=k, v=v)
    assert_near(problem, problem.reference(), out, lse)
