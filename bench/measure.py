"""Measures one case: ours and every peer in turn, round after round, with their results checked."""

from __future__ import annotations

from dataclasses import dataclass, field

from .data import Inputs, Pool, make_inputs
from .limits import Limits
from .oracle import WRONG_ABOVE, Oracle
from .peers import Bound, Peer, UnsupportedCaseError
from .sampling import Rotation, first_call_seconds, sample, settle
from .shapes import Case

# A library far behind takes most of the time and decides nothing: (slower than ours by, rounds).
FEWER_ROUNDS = ((10.0, 3), (4.0, 5))
ONE_CALL_ABOVE = 1.5  # seconds: then the call that was checked is the only sample


@dataclass
class Entry:
    """One library's samples of one case, in seconds a call, or why there are none."""

    name: str
    peer: Peer
    variant: str = ""
    bound: Bound | None = None
    expected: float = 0.0
    rounds: int = 0
    error: float = 0.0  # the largest relative error of the sampled rows
    error_share: float = 0.0  # the largest of them over the bound that we promise
    samples: list[float] = field(default_factory=list)
    reason: str = ""


@dataclass
class Measurement:
    case: Case
    ours: Entry
    peers: list[Entry]
    loads: list[float]  # pure-load sweeps over the same bytes; empty where calls do not rotate
    without: Entry | None = None  # ours without the case's feature


def prepare(peer: Peer, inputs: Inputs, oracle: Oracle) -> Entry:
    """Binds every variant, checks its result and keeps the quickest."""
    entry = Entry(peer.name, peer)
    missing = inputs.case.feature.needs - peer.features
    if missing:
        entry.reason = f"has no {', '.join(sorted(missing))}"
        return entry
    try:
        variants = peer.variants(inputs.case)
    except UnsupportedCaseError as error:
        entry.reason = str(error)
        return entry
    reasons = []
    for variant in variants:
        try:
            _try_variant(entry, variant, inputs, oracle)
        except UnsupportedCaseError as error:
            reasons.append(str(error))
        except Exception as error:
            reasons.append(f"{variant}: {type(error).__name__}: {error}")
    if entry.bound is None:
        entry.reason = "; ".join(reasons)
    return entry


def _try_variant(entry: Entry, variant: str, inputs: Inputs, oracle: Oracle) -> None:
    bound = entry.peer.bind(inputs, variant)
    settle()
    with entry.peer.awake():
        seconds = first_call_seconds(bound.calls[0])
        errors = oracle.errors(bound.output())
        if not max(errors) < WRONG_ABOVE:
            raise UnsupportedCaseError(f"{variant}: wrong result, relative error {max(errors):.2g}")
        if seconds < ONE_CALL_ABOVE:
            seconds = min(first_call_seconds(bound.calls[-1]) for _ in range(2))
    entry.error = max(entry.error, *errors)
    entry.error_share = max(entry.error_share, oracle.share_of_bound(errors))
    if entry.bound is None or seconds < entry.expected:
        entry.bound, entry.variant, entry.expected = bound, variant, seconds


def plan_rounds(entry: Entry, ours: float | None, runs: int) -> None:
    """How often to sample an entry, given our own time."""
    entry.rounds = runs
    if entry.expected > ONE_CALL_ABOVE:
        entry.samples = [entry.expected]
        entry.rounds = 1
        return
    for slower, rounds in FEWER_ROUNDS:
        if ours is not None and entry.expected > slower * ours:
            entry.rounds = min(runs, rounds)
            return


def measure_case(
    case: Case, ours: Peer, peers: list[Peer], limits: Limits, pool: Pool, cache_bytes: int,
    runs: int,
) -> Measurement:  # fmt: skip
    inputs = make_inputs(case, pool, cache_bytes)
    oracle = Oracle(inputs)
    own = prepare(ours, inputs, oracle)
    others = [prepare(peer, inputs, oracle) for peer in peers]
    without = None
    if case.without is not None:
        plain = inputs.of(case.without)
        without = prepare(ours, plain, Oracle(plain))
        others.append(without)
    entries = [entry for entry in (own, *others) if entry.bound is not None]
    for entry in entries:
        plan_rounds(entry, own.expected if own.bound else None, runs)

    rotation = Rotation(len(inputs.caches))
    loads: list[float] = []
    for round_ in range(runs):
        if case.rotates:
            settle()
            loads.append(limits.load_seconds(inputs.caches[rotation.step()]))
        for entry in entries:
            if len(entry.samples) <= round_ < entry.rounds:
                entry.samples.append(
                    sample(entry.bound.calls, rotation, entry.expected, entry.peer)
                )
    for entry in entries:
        entry.bound = None
    if without is not None:
        others.remove(without)
    return Measurement(case, own, others, loads, without)


def measure_curve(
    cases: list[Case], ours: Peer, pool: Pool, cache_bytes: int, runs: int
) -> dict[int, list[float]]:
    """Our samples for each L, taken in turn over the same caches, so that neighbours compare."""
    longest = make_inputs(cases[-1], pool, cache_bytes)
    rotation = Rotation(len(longest.caches))
    bound: dict[int, Bound] = {}
    expected: dict[int, float] = {}
    for case in cases:
        q = pool.draw((case.B, case.Hq, case.L, case.D), case.dtype)
        inputs = Inputs(case, q, longest.caches)
        bound[case.L] = ours.bind(inputs, "numpy")
        first_call_seconds(bound[case.L].calls[0])
        expected[case.L] = first_call_seconds(bound[case.L].calls[0])
    samples: dict[int, list[float]] = {L: [] for L in bound}
    for _ in range(runs):
        for L, ready in bound.items():
            samples[L].append(sample(ready.calls, rotation, expected[L], ours))
    return samples
