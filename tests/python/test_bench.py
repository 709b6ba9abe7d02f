"""The arithmetic of the benchmark: statistics, work counts, limits, oracle, verdicts, report."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

pytest.importorskip("ml_dtypes", reason="the benchmark makes bfloat16 inputs with ml_dtypes")

from bench import report, roofline
from bench.data import ALIGNMENT, Pool, aligned_empty, cache_count, make_inputs
from bench.machine import parse_size
from bench.oracle import Oracle, exact_row, sample_rows
from bench.peers.base import fold_queries, folded_mask
from bench.results import curve_record, is_steep, with_limit_steps
from bench.sampling import Rotation
from bench.shapes import Case, all_cases
from bench.stats import median, paired_ratio, steps

LLC = 32 << 20


# ----- statistics ---------------------------------------------------------------------------------


def test_paired_ratio_compares_samples_of_the_same_round() -> None:
    # A disturbance that hits both samples of a round leaves the ratio alone.
    paired = paired_ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])
    assert paired.ratio == paired.low == paired.high == 2.0
    assert paired.pairs == 3


def test_paired_ratio_of_fewer_rounds_uses_those() -> None:
    paired = paired_ratio([3.0], [1.0, 100.0])
    assert (paired.ratio, paired.pairs) == (3.0, 1)


def test_paired_ratio_gives_quartiles() -> None:
    paired = paired_ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert (paired.low, paired.ratio, paired.high) == (2.0, 3.0, 4.0)


def test_paired_ratio_needs_a_sample() -> None:
    with pytest.raises(ValueError, match="no sample"):
        paired_ratio([], [1.0])


def test_steps_compare_neighbours_only() -> None:
    assert steps({1: 1.0, 2: 1.5, 4: 9.0}) == {1: 1.5}


def test_a_step_that_the_limit_makes_too_is_not_steep() -> None:
    peaks = roofline.Peaks(fma_f32=236e9, bf16_dot=None, read=36e9)
    # One query waits for memory; from the second on arithmetic is the limit, in proportion to L.
    curve = curve_record("f16", {1: [1.0], 2: [1.2], 3: [1.7]})
    curve = with_limit_steps(curve, peaks)
    assert curve["limit_steps"]["2"] == pytest.approx(1.5, rel=1e-3)
    assert not is_steep(curve)
    assert is_steep(with_limit_steps(curve_record("f16", {1: [1.0], 2: [1.3], 3: [1.7]}), peaks))


def test_median() -> None:
    assert median([3.0, 1.0, 2.0]) == 2.0


# ----- work and limits ----------------------------------------------------------------------------


@pytest.mark.parametrize("L", [1, 2, 5, 9])
@pytest.mark.parametrize("S", [1, 4, 9])
@pytest.mark.parametrize("causal", [False, True])
def test_visible_pairs_match_a_mask(L: int, S: int, causal: bool) -> None:
    positions = np.arange(L)[:, None] + S - L
    seen = np.arange(S)[None, :] <= positions if causal else np.ones((L, S), dtype=bool)
    assert roofline.visible_pairs(L, S, causal) == seen.sum()


def test_flops_of_a_decode_step() -> None:
    case = Case("decode", "f16", 1, 4096)
    assert roofline.flop_count(case) == 4 * 32 * 4096 * 128
    assert case.kv_bytes == 2 * 8 * 4096 * 128 * 2


def test_limit_is_the_longer_of_arithmetic_and_loads() -> None:
    peaks = roofline.Peaks(fma_f32=1e9, bf16_dot=2e9, read=1e9)
    case = Case("chunk", "f32", 16, 1024)
    compute = roofline.flop_count(case) / 1e9
    assert roofline.limit_seconds(case, peaks, None) == compute
    assert roofline.limit_seconds(case, peaks, compute / 2) == compute
    assert roofline.limit_seconds(case, peaks, compute * 2) == compute * 2


def test_arithmetic_peak_by_dtype() -> None:
    peaks = roofline.Peaks(fma_f32=1.0, bf16_dot=2.0, read=1.0)
    assert [peaks.flops(dtype) for dtype in ("f32", "f16", "bf16")] == [1.0, 1.0, 2.0]
    assert roofline.Peaks(1.0, None, 1.0).flops("bf16") == 1.0


@pytest.mark.parametrize(
    ("case", "share"),
    [
        (Case("prefill", "f32", 2048, 2048, D=128, target="prefill"), 0.80),
        (Case("prefill", "f16", 2048, 2048, D=64, target="prefill"), 0.75),
        (Case("prefill", "bf16", 2048, 2048, D=64, target="prefill"), 0.60),
        (Case("chunk", "bf16", 64, 4096, target="chunk"), 0.70),
        (Case("decode", "bf16", 1, 4096, target="decode"), 0.90),
        (Case("decode", "f32", 1, 512), None),
    ],
)
def test_target_shares(case: Case, share: float | None) -> None:
    assert roofline.target_share(case) == share


# ----- cases and inputs ---------------------------------------------------------------------------


def test_every_case_has_a_name_of_its_own() -> None:
    keys = [case.key for case in all_cases()]
    assert len(keys) == len(set(keys))
    assert any(case.quick for case in all_cases())


def test_caches_exceed_four_times_the_last_level_cache() -> None:
    for case in all_cases():
        total = cache_count(case, LLC) * case.kv_bytes
        assert not case.rotates or total > 4 * LLC, case.key


def test_rotation_returns_to_a_cache_after_all_others() -> None:
    rotation = Rotation(3)
    assert [rotation.step() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_pool_gives_aligned_arrays_that_differ() -> None:
    pool = Pool()
    first, second = pool.draw((3, 5), "bf16"), pool.draw((3, 5), "bf16")
    assert first.ctypes.data % ALIGNMENT == 0
    assert first.dtype.name == "bfloat16"
    assert not np.array_equal(first, second)
    assert aligned_empty((2, 7), np.dtype(np.float16)).shape == (2, 7)


def test_parse_size() -> None:
    assert [parse_size(text) for text in ("64", "32K\n", "2M")] == [64, 32 << 10, 2 << 20]


# ----- oracle -------------------------------------------------------------------------------------


def textbook(inputs) -> np.ndarray:
    """The whole output in float64, scores and all."""
    case = inputs.case
    k, v = (np.repeat(a.astype(np.float64), case.group, axis=1) for a in inputs.caches[0])
    scores = inputs.q.astype(np.float64) @ k.swapaxes(-1, -2) * inputs.scale
    if case.causal:
        positions = np.arange(case.L)[:, None] + case.S - case.L
        scores = np.where(np.arange(case.S) <= positions, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ v


@pytest.mark.parametrize("causal", [False, True])
def test_oracle_rows_match_the_textbook(causal: bool) -> None:
    case = Case("x", "f16", 5, 9, D=8, B=2, Hq=4, Hkv=2, causal=causal)
    inputs = make_inputs(case, Pool(), LLC)
    expected = textbook(inputs)
    for b in range(case.B):
        for h in range(case.Hq):
            for i in range(case.L):
                row = exact_row(inputs, (b, h, i))
                np.testing.assert_allclose(row.out, expected[b, h, i], rtol=1e-12)


def test_oracle_passes_a_rounded_result_and_no_other() -> None:
    case = Case("x", "f32", 4, 16, D=8, Hq=4, Hkv=2)
    inputs = make_inputs(case, Pool(), LLC)
    oracle = Oracle(inputs)
    exact = textbook(inputs)
    rounded = oracle.errors(exact.astype(np.float32))
    assert oracle.share_of_bound(rounded) <= 1.0
    swapped = oracle.errors(exact[:, ::-1])
    assert oracle.share_of_bound(swapped) > 1.0
    for row in oracle.rows:
        broken = exact.astype(np.float32)
        broken[row.row] = np.nan
        assert oracle.share_of_bound(oracle.errors(broken)) == np.inf


def test_sampled_rows_include_the_ends() -> None:
    case = Case("x", "f32", 7, 7, D=8, B=3, Hq=4, Hkv=2)
    rows = sample_rows(make_inputs(case, Pool(), LLC))
    assert rows[0] == (0, 0, 0)
    assert rows[-1] == (2, 3, 6)


def test_folded_queries_see_the_keys_of_their_own_query() -> None:
    case = Case("x", "f32", 3, 5, D=2, Hq=4, Hkv=2)
    q = np.arange(case.Hq * case.L * case.D).reshape(1, case.Hq, case.L, case.D)
    folded, mask = fold_queries(q, case.Hkv), folded_mask(case)
    for head in range(case.Hq):
        for i in range(case.L):
            row = head % case.group * case.L + i
            np.testing.assert_array_equal(folded[0, head // case.group, row], q[0, head, i])
            assert mask[row].sum() == case.S - case.L + i + 1


# ----- report -------------------------------------------------------------------------------------


def test_report_merges_numbers_by_median() -> None:
    records = [{"seconds": s, "name": "x", "samples": [s]} for s in (1.0, 5.0, 2.0)]
    assert report.merged(records) == {"seconds": 2.0, "name": "x"}


def test_report_replaces_what_stands_between_the_markers() -> None:
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    changed = report.replace_section(page, "new")
    assert changed == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    with pytest.raises(ValueError, match="no section"):
        report.replace_section("no markers", "new")
