"""What the benchmark measures and concludes: checked results, fair samples, the right rival."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

pytest.importorskip("ml_dtypes", reason="the benchmark makes bfloat16 inputs with ml_dtypes")

from bench import measure, report, results, sampling
from bench.data import Inputs, Pool, make_inputs
from bench.features import Feature
from bench.formats import format_rate, format_seconds, format_share
from bench.measure import Entry, Measurement, measure_case, measure_curve, plan_rounds, prepare
from bench.oracle import WRONG_ABOVE, Oracle, exact_row, sample_rows
from bench.peers import load_peers
from bench.peers.base import Bound, Peer, UnsupportedCaseError
from bench.results import cell_record, curve_record, entry_record
from bench.roofline import LEAD, STEP_LIMIT, WINS_BELOW, Peaks, target_ratio
from bench.sampling import Rotation, sample
from bench.shapes import Case

CASE = Case("x", "f32", 6, 16, D=8, Hq=2, Hkv=1)
PEAKS = Peaks(fma_f32=1e9, bf16_dot=None, read=1e9)


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(sampling, "clock", made)
    monkeypatch.setattr(sampling, "settle", lambda: None)
    monkeypatch.setattr(measure, "settle", lambda: None)
    return made


def exact_output(inputs: Inputs) -> np.ndarray:
    """Every row of the oracle."""
    case = inputs.case
    out = np.empty((case.B, case.Hq, case.L, case.D), np.float32)
    for b, h, i in np.ndindex(case.B, case.Hq, case.L):
        out[b, h, i] = exact_row(inputs, (b, h, i)).out
    return out


class FakePeer(Peer):
    """A library whose variants take as long, and are as wrong, as the test says."""

    name = "fake"
    version = "1"

    def __init__(self, clock: Clock, variants: dict[str, Any]) -> None:
        super().__init__(1)
        self.clock = clock
        self.of = variants
        self.awake_now = 0
        self.calls: list[int] = []

    def variants(self, case: Case) -> list[str]:
        if not self.of:
            raise UnsupportedCaseError("no way to do it")
        return list(self.of)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        self.awake_now += 1
        yield
        self.awake_now -= 1

    def bind(self, inputs: Inputs, variant: str) -> Bound:
        seconds, change = self.of[variant]
        if isinstance(change, Exception):
            raise change
        out = change(exact_output(inputs))

        def call(cache: int) -> None:
            assert self.awake_now == 1
            self.calls.append(cache)
            self.clock.now += seconds

        n = len(inputs.caches)
        return Bound([lambda c=c: call(c) for c in range(n)], lambda: out)


def unchanged(out: np.ndarray) -> np.ndarray:
    return out


def make(case: Case = CASE) -> tuple[Inputs, Oracle]:
    inputs = make_inputs(case, Pool(), 1 << 20)
    return inputs, Oracle(inputs)


# ----- results are checked ------------------------------------------------------------------------


@pytest.mark.parametrize("row", range(6))
def test_one_wrong_row_of_those_looked_at_is_a_wrong_result(clock: Clock, row: int) -> None:
    inputs, oracle = make()
    assert len(oracle.rows) == 6

    def wrong(out: np.ndarray) -> np.ndarray:
        out[oracle.rows[row].row] += 1
        return out

    entry = prepare(FakePeer(clock, {"a": (0.1, wrong)}), inputs, oracle)
    assert entry.bound is None
    assert "wrong result" in entry.reason


def test_one_right_row_does_not_make_a_result(clock: Clock) -> None:
    inputs, oracle = make()
    for right in oracle.rows:

        def mostly_wrong(out: np.ndarray, row: tuple[int, int, int] = right.row) -> np.ndarray:
            changed = out + 1
            changed[row] = out[row]
            return changed

        entry = prepare(FakePeer(clock, {"a": (0.1, mostly_wrong)}), inputs, oracle)
        assert entry.bound is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_wrong(clock: Clock, value: float) -> None:
    inputs, oracle = make()

    def spoilt(out: np.ndarray) -> np.ndarray:
        out[oracle.rows[2].row][3] = value
        return out

    assert prepare(FakePeer(clock, {"a": (0.1, spoilt)}), inputs, oracle).bound is None


def test_errors_are_measured_against_the_row_of_absolute_values() -> None:
    inputs, oracle = make()
    out = exact_output(inputs).astype(np.float64)
    exact = oracle.rows[1]
    out[exact.row] = exact.out
    out[exact.row][0] += 0.03 * exact.scale
    errors = oracle.errors(out)
    assert errors[1] == pytest.approx(0.03)
    assert max(errors[:1] + errors[2:]) < 1e-6
    assert oracle.share_of_bound(errors) == pytest.approx(0.03 / exact.bound)
    assert 0.03 < WRONG_ABOVE < 0.1


def test_rows_that_are_looked_at_are_spread_and_distinct() -> None:
    inputs, _ = make(Case("x", "f32", 7, 9, D=8, B=2, Hq=3, Hkv=3))
    rows = sample_rows(inputs)
    assert len(set(rows)) == 6
    flat = [b * 21 + h * 7 + i for b, h, i in rows]
    assert flat[0] == 0
    assert flat[-1] == 41
    assert max(np.diff(flat)) <= 9
    assert len(sample_rows(make(Case("x", "f32", 1, 9, D=8, Hq=3, Hkv=3))[0])) == 3


def test_the_bound_follows_scores_and_dtype() -> None:
    inputs, oracle = make()
    louder = Inputs(inputs.case, inputs.q * 2, inputs.caches)
    quiet, loud = oracle.rows[0].bound, exact_row(louder, oracle.rows[0].row).bound
    unit = 2.0**-24
    assert loud - 16 * unit == pytest.approx(2 * (quiet - 16 * unit))
    narrow, _ = make(replace(CASE, dtype="f16"))
    row = exact_row(narrow, (0, 0, 0))
    assert row.bound > 1.25 * 2.0**-11
    assert row.bound < 1.25 * 2.0**-11 + 100 * unit


def test_the_quickest_right_variant_counts(clock: Clock) -> None:
    inputs, oracle = make()
    peer = FakePeer(
        clock,
        {
            "slow": (0.4, unchanged),
            "quick": (0.2, unchanged),
            "wrong": (0.1, lambda out: -out),
            "broken": (0.1, ValueError("no such thing")),
            "middle": (0.3, unchanged),
        },
    )
    entry = prepare(peer, inputs, oracle)
    assert (entry.variant, entry.expected) == ("quick", pytest.approx(0.2))
    assert entry.reason == ""
    assert entry.error < 1e-6


def test_why_a_peer_has_no_result(clock: Clock) -> None:
    inputs, oracle = make()
    assert prepare(FakePeer(clock, {}), inputs, oracle).reason == "no way to do it"
    peer = FakePeer(
        clock,
        {"a": (0.1, ValueError("odd")), "b": (0.1, UnsupportedCaseError("b: never"))},
    )
    assert prepare(peer, inputs, oracle).reason == "a: ValueError: odd; b: never"
    absent = load_peers(["ggml"], 1)
    assert len(absent[0]) + len(absent[1]) == 1


def test_the_error_of_an_entry_is_that_of_its_worst_variant(clock: Clock) -> None:
    inputs, oracle = make()

    def off(out: np.ndarray) -> np.ndarray:
        return out * np.float32(1.01)

    entry = prepare(FakePeer(clock, {"off": (0.2, off), "exact": (0.1, unchanged)}), inputs, oracle)
    assert entry.error == pytest.approx(0.01, rel=0.6)
    assert entry.error_share > 100


# ----- samples ------------------------------------------------------------------------------------


def test_a_sample_is_the_mean_of_calls_over_caches_in_turn(clock: Clock) -> None:
    inputs, _ = make()
    peer = FakePeer(clock, {"a": (0.0005, unchanged)})
    bound = peer.bind(inputs, "a")
    calls = [bound.calls[0]] * 3
    order: list[int] = []
    calls = [lambda c=c: (order.append(c), bound.calls[0]()) for c in range(3)]
    assert sample(calls, Rotation(3), 0.0005, peer) == pytest.approx(0.0005)
    assert order == [0, 1, 2, 0, 1, 2][: len(order)]
    assert len(order) == 1 + 5  # one that wakes the threads, then 2 ms of calls
    order.clear()
    assert sample(calls, Rotation(3), 0.1, peer) == pytest.approx(0.0005)
    assert order == [0]


def test_fewer_rounds_for_what_decides_nothing(clock: Clock) -> None:
    def rounds(expected: float, ours: float | None) -> tuple[int, list[float]]:
        entry = Entry("x", FakePeer(clock, {}), expected=expected)
        plan_rounds(entry, ours, 15)
        return entry.rounds, entry.samples

    assert rounds(0.1, 0.1) == (15, [])
    assert rounds(0.39, 0.1) == (15, [])
    assert rounds(0.41, 0.1) == (5, [])
    assert rounds(1.01, 0.1) == (3, [])
    assert rounds(1.01, None) == (15, [])
    assert rounds(1.6, 0.1) == (1, [1.6])


class FakeLimits:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def load_seconds(self, arrays: Any) -> float:
        return 0.01


def test_ours_and_peers_take_turns_in_every_round(clock: Clock) -> None:
    ours = FakePeer(clock, {"a": (0.1, unchanged)})
    peer = FakePeer(clock, {"a": (0.3, unchanged)})
    slow = FakePeer(clock, {"a": (0.5, unchanged)})
    wrong = FakePeer(clock, {"a": (0.01, lambda out: -out)})
    limits: Any = FakeLimits(clock)
    m = measure_case(CASE, ours, [peer, slow, wrong], limits, Pool(), 1 << 20, 7)
    assert m.ours.samples == pytest.approx([0.1] * 7)
    assert m.peers[0].samples == pytest.approx([0.3] * 7)
    assert m.peers[1].samples == pytest.approx([0.5] * 5)
    assert m.peers[2].samples == []
    assert m.loads == []
    assert m.ours.bound is None


def test_calls_that_rotate_have_load_sweeps_beside_them(clock: Clock) -> None:
    case = Case("x", "f32", 1, 4096, D=64, Hq=8, Hkv=8)
    assert case.rotates
    ours = FakePeer(clock, {"a": (0.1, unchanged)})
    limits: Any = FakeLimits(clock)
    m = measure_case(case, ours, [], limits, Pool(), 1 << 20, 3)
    assert m.loads == [0.01] * 3


def test_a_curve_has_the_samples_of_every_length(clock: Clock) -> None:
    class ByLength(FakePeer):
        def bind(self, inputs: Inputs, variant: str) -> Bound:
            def call() -> None:
                self.clock.now += 0.1 * inputs.case.L

            return Bound([call] * len(inputs.caches), lambda: inputs.q)

    cases = [Case("curve", "f32", L, 64, D=8, Hq=2, Hkv=1) for L in (1, 2, 4)]
    samples = measure_curve(cases, ByLength(clock, {"numpy": 0}), Pool(), 1 << 20, 3)
    assert {L: pytest.approx(values) for L, values in samples.items()} == {
        1: [0.1] * 3,
        2: [0.2] * 3,
        4: [0.4] * 3,
    }


# ----- what is concluded --------------------------------------------------------------------------


def measured(
    case: Case, ours: list[float], peers: dict[str, list[float]], loads: list[float] | None = None
) -> Measurement:
    peer: Any = None
    entries = [Entry(name, peer, samples=list(values)) for name, values in peers.items()]
    own = Entry("ours", peer, variant="numpy", samples=list(ours), error_share=0.5, error=1e-7)
    return Measurement(case, own, entries, loads or [])


def cell(
    ours: list[float], peers: dict[str, list[float]], case: Case = CASE, loads: Any = None
) -> dict[str, Any]:
    return cell_record(measured(case, ours, peers, loads), PEAKS)


def test_the_rival_is_the_quickest_peer() -> None:
    record = cell([2.0, 2.0, 2.0], {"slow": [8.0] * 3, "quick": [3.0] * 3, "none": []})
    assert (record["best_peer"], record["rival"], record["ratio"]) == ("quick", "quick", 1.5)
    assert record["peers"]["none"] == {"reason": "not measured"}
    assert record["peers"]["slow"]["ratio"] == 4.0


def test_tiny_calls_are_held_against_pytorch() -> None:
    tiny = replace(CASE, family="tiny", target="tiny numpy")
    peers = {"PyTorch": [6.0], "other": [4.0]}
    record = cell([2.0], peers, tiny)
    assert (record["best_peer"], record["rival"], record["ratio"]) == ("other", "PyTorch", 3.0)
    assert cell([2.0], {"other": [4.0]}, tiny)["rival"] == "other"
    assert target_ratio(tiny) == 3.0
    assert target_ratio(replace(CASE, target="tiny torch")) == 1.0
    assert target_ratio(CASE) == LEAD


def test_times_are_medians_on_both_sides() -> None:
    record = cell([9.0, 1.0, 2.0], {"p": [20.0, 2.0, 4.0]})
    assert record["ours"]["seconds"] == 2.0
    assert record["ours"]["best_seconds"] == 1.0
    assert record["peers"]["p"]["seconds"] == 4.0
    assert record["ratio"] == 2.0
    flops = record["flops"]
    assert record["ours"]["gflops"] == flops / 2.0 / 1e9
    assert record["ours"]["gbytes"] == CASE.kv_bytes / 2.0 / 1e9


def test_the_share_of_the_limit() -> None:
    flops = cell([1.0], {})["flops"]
    assert cell([2.0], {})["share_of_limit"] == flops / 1e9 / 2.0
    loads = cell([2.0, 4.0, 2.0], {}, loads=[1.0, 1.0, 1.5])
    assert loads["share_of_limit"] == 0.5  # of 0.5, 0.25 and 0.75
    assert loads["load_seconds"] == 1.0
    assert cell([], {"p": [1.0]})["share_of_limit"] is None
    assert cell([], {"p": [1.0]})["ratio"] is None


def test_the_cost_of_a_feature_is_held_against_the_call_without() -> None:
    case = replace(CASE, feature=Feature("softcap", softcap=30.0, cost_limit=1.25))
    measurement = measured(case, [3.0, 3.0, 6.0], {})
    measurement.without = measured(case, [2.0, 2.0, 2.0], {}).ours
    assert cell_record(measurement, PEAKS)["cost"] == 1.5
    assert cell_record(measurement, PEAKS)["cost_limit"] == 1.25
    assert cell([2.0], {})["cost"] is None


def verdicts(**changes: Any) -> dict[str, bool]:
    base = cell([2.0], {"p": [3.0]}) | {"share_of_limit": 0.5, "target_share": None}
    record = base | changes
    tests = (
        results.is_wrong,
        results.loses,
        results.lags,
        results.under_target,
        results.is_dear,
    )
    return {test.__name__: test(record) for test in tests}


def test_verdicts() -> None:
    fine = dict.fromkeys(("is_wrong", "loses", "lags", "under_target", "is_dear"), False)
    assert verdicts() == fine
    assert verdicts(ratio=WINS_BELOW - 0.01) == fine | {"loses": True}
    assert verdicts(ratio=WINS_BELOW) == fine | {"lags": True}
    assert verdicts(ratio=LEAD) == fine
    assert verdicts(ratio=1.0, share_of_limit=0.95) == fine  # no machine has room for that lead
    assert verdicts(ratio=1.0, share_of_limit=None) == fine | {"lags": True}
    assert verdicts(ratio=None) == fine
    assert verdicts(target_share=0.6) == fine | {"under_target": True}
    assert verdicts(target_share=0.5) == fine
    assert verdicts(ours={"error_share_of_bound": 1.01}) == fine | {"is_wrong": True}
    assert verdicts(ours={"error_share_of_bound": 1.0}) == fine
    assert verdicts(cost=1.26, cost_limit=1.25) == fine | {"is_dear": True}
    assert verdicts(cost=1.25, cost_limit=1.25) == fine
    assert verdicts(cost=9.0, cost_limit=None) == fine
    assert verdicts(cost=None, cost_limit=1.25) == fine


def test_the_summary_lists_each_cell_where_it_belongs() -> None:
    good = cell([2.0], {"p": [3.0]}) | {"key": "good", "share_of_limit": 0.9}
    lost = good | {"key": "lost", "ratio": 0.5}
    worse = good | {"key": "worse", "ratio": 0.4}
    under = good | {"key": "under", "target_share": 0.95}
    absent = cell([], {}) | {"key": "absent"}
    dear = good | {"key": "dear", "cost": 1.3, "cost_limit": 1.25}
    dearer = good | {"key": "dearer", "cost": 0.5, "cost_limit": 1 / 6}
    wrong = good | {"key": "wrong", "ours": good["ours"] | {"error_share_of_bound": 2.0}}
    steep = {
        "dtype": "f16",
        "steps": {"1": 1.0, "2": STEP_LIMIT + 0.1},
        "limit_steps": {"1": 1.0, "2": 1.0},
        "step_limit": STEP_LIMIT,
    }
    made = results.summary([good, lost, worse, under, absent, wrong, dear, dearer], [steep])
    assert made == {
        "wrong": ["wrong"],
        "not_computed": ["absent"],
        "peer_wins": ["worse", "lost"],
        "short_lead": [],
        "under_target": ["under"],
        "dear_features": ["dearer", "dear"],
        "steep_curves": ["f16"],
    }
    assert results.steepest(steep).startswith(f"{STEP_LIMIT + 0.1:.2f}, from L = 2")


def test_a_step_of_a_curve_is_the_median_of_the_rounds_own() -> None:
    curve = curve_record("f32", {1: [1.0, 2.0, 4.0], 2: [1.5, 2.0, 8.0]})
    assert curve["steps"] == {"1": 1.5}
    assert curve["seconds"] == {"1": 2.0, "2": 2.0}
    assert curve["worst_step"] == 1.5


def test_an_entry_without_samples_says_why() -> None:
    nobody: Any = None
    assert entry_record(Entry("x", nobody, reason="absent"), CASE, None) == {"reason": "absent"}
    record = entry_record(Entry("x", nobody, samples=[1.23456789]), CASE, None)
    assert record["samples"] == [1.2346]
    assert "ratio" not in record


# ----- what is published --------------------------------------------------------------------------


def document(ratio: float, seconds: float, name: str = "p") -> dict[str, Any]:
    case = replace(CASE, target="chunk")
    one = cell([seconds], {name: [ratio * seconds]}, case)
    curve = curve_record("f32", {1: [1.0], 2: [1.1]}) | {"limit_steps": {"1": 1.0}}
    return {
        "date": "2026-01-02T03",
        "isa": "avx2",
        "machine": {"processor": "P", "last_level_cache_bytes": 32 << 20},
        "settings": {"threads": 2, "runs": 5},
        "peaks": PEAKS.as_dict(),
        "versions": {"ours": "1"},
        "absent": {"ggml": "not there"},
        "cells": [one],
        "curves": [curve],
        "summary": results.summary([one], [curve]),
    }


def test_a_peer_wins_only_where_it_wins_in_every_run() -> None:
    runs = [document(0.8, 1.0), document(0.9, 2.0), document(1.1, 4.0)]
    mixed = report.merge_runs(runs)
    assert mixed["cells"][0]["peer_wins"] is False
    assert mixed["cells"][0]["ratio"] == 0.9
    assert mixed["cells"][0]["ours"]["seconds"] == 2.0
    assert mixed["runs"] == 3
    lost = report.merge_runs(runs[:2])
    assert lost["cells"][0]["peer_wins"] is True
    text = report.results_markdown(lost, "folder")
    assert "Cells where a peer wins: 1 (x/" in text
    assert "2 runs of 5 rounds" in text
    assert "Absent: ggml: not there" in text
    assert "folder/bench.png" in text
    assert "Cells where a peer wins: none." in report.results_markdown(mixed, "folder")
    other = document(1.0, 1.0)
    other["cells"][0]["key"] = "another"
    with pytest.raises(ValueError, match="different cells"):
        report.merge_runs([runs[0], other])


def test_a_cell_of_the_page() -> None:
    one = document(1.5, 0.002)["cells"][0] | {"share_of_limit": 0.61, "target_share": 0.7}
    text = report.markdown_cell(one)
    assert text.startswith("2 ms, ")
    assert "**61%**; 1.50x p" in text
    lost = one | {"ratio": 0.5, "target_share": 0.6}
    assert "61%; **0.50x** p" in report.markdown_cell(lost)
    assert report.markdown_cell(None) == ""
    assert report.markdown_cell(one | {"ours": {"reason": "r"}}) == "not computed: r"
    assert report.markdown_cell(one | {"ratio": None}).endswith("**61%**")
    tiny = one | {"family": "tiny"}
    assert report.markdown_cell(tiny) == "2 ms; 1.50x p"


def test_the_command_writes_page_and_figures(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"a\n{report.BEGIN}\nold\n{report.END}\nz\n")
    run = tmp_path / "run" / "bench.json"
    run.parent.mkdir()
    run.write_text(json.dumps(document(1.5, 0.002)))
    (run.parent / "bench.png").write_bytes(b"picture")
    assert report.main([str(run), "--page", str(page)]) == 0
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("a\n")
    assert text.endswith("z\n")
    assert "| x | f32 | f16 | bf16 |" in text
    assert json.loads((tmp_path / "page" / "bench.json").read_text())["runs"] == 1
    assert (tmp_path / "page" / "bench.png").read_bytes() == b"picture"


def test_numbers_as_text() -> None:
    assert [format_seconds(s) for s in (2.5, 0.0125, 3.21e-5, 4e-8)] == [
        "2.5 s",
        "12.5 ms",
        "32.1 us",
        "40 ns",
    ]
    decode = cell([0.001], {}, Case("x", "f32", 1, 4096))
    assert format_rate(decode) == f"{decode['ours']['gbytes']:.1f} GB/s"
    assert format_rate(cell([0.001], {})) == f"{cell([0.001], {})['ours']['gflops']:.0f} GF/s"
    assert format_rate(cell([], {})) == "-"
    share = {"share_of_limit": 0.5, "target_share": 0.7, "family": "x"}
    assert format_share(share) == "50% of 70%"
    assert format_share(share | {"target_share": None}) == "50%"
    assert format_share(share | {"family": "tiny"}) == "-"
    assert format_share(share | {"share_of_limit": None}) == "-"
