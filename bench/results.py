"""Turns measurements into the records of the JSON file."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .measure import Entry, Measurement
from .roofline import (
    LEAD,
    STEP_LIMIT,
    WINS_BELOW,
    Peaks,
    flop_count,
    limit_seconds,
    target_ratio,
    target_share,
)
from .shapes import Case, curve_case
from .stats import median, paired_ratio, steps

Record = dict[str, Any]

# Tiny calls are held against PyTorch's own call; everything else against the best peer.
TINY_RIVAL = "PyTorch"


def entry_record(entry: Entry, case: Case, ours: Entry | None) -> Record:
    """One library's result; the ratio theirs / ours where both have samples."""
    if not entry.samples:
        return {"reason": entry.reason or "not measured"}
    seconds = median(entry.samples)
    record: Record = {
        "seconds": seconds,
        "best_seconds": min(entry.samples),
        "variant": entry.variant,
        "gflops": flop_count(case) / seconds / 1e9,
        "gbytes": case.kv_bytes / seconds / 1e9,
        "error": entry.error,
        "error_share_of_bound": entry.error_share,
        "samples": [float(f"{value:.5g}") for value in entry.samples],
    }
    if ours is not None and ours.samples:
        record |= asdict(paired_ratio(entry.samples, ours.samples))
    return record


def share_of_limit(measurement: Measurement, peaks: Peaks) -> float | None:
    """The machine's least time over ours, paired with the load sweeps of the same rounds."""
    ours = measurement.ours.samples
    if not ours:
        return None
    if not measurement.loads:
        return limit_seconds(measurement.case, peaks, None) / median(ours)
    return median(
        [
            limit_seconds(measurement.case, peaks, load) / own
            for load, own in zip(measurement.loads, ours, strict=False)
        ]
    )


def feature_cost(measurement: Measurement) -> float | None:
    """Our time over our time without the feature; None for a case that has none."""
    without = measurement.without
    if without is None or not without.samples or not measurement.ours.samples:
        return None
    return 1 / paired_ratio(without.samples, measurement.ours.samples).ratio


def cell_record(measurement: Measurement, peaks: Peaks) -> Record:
    case = measurement.case
    peers = {entry.name: entry_record(entry, case, measurement.ours) for entry in measurement.peers}
    measured = {name: record for name, record in peers.items() if "ratio" in record}
    best = min(measured, key=lambda name: measured[name]["ratio"], default=None)
    tiny = case.target.startswith("tiny")
    rival = TINY_RIVAL if tiny and TINY_RIVAL in measured else best
    return {
        "key": case.key,
        "family": case.family,
        "name": case.name,
        "shape": {letter: getattr(case, letter) for letter in ("B", "Hq", "Hkv", "L", "S", "D")},
        "dtype": case.dtype,
        "causal": case.causal,
        "flops": flop_count(case),
        "kv_bytes": case.kv_bytes,
        "load_seconds": median(measurement.loads) if measurement.loads else None,
        "share_of_limit": share_of_limit(measurement, peaks),
        "target_share": target_share(case),
        "target_ratio": target_ratio(case),
        "ours": entry_record(measurement.ours, case, None),
        "feature": case.feature.name,
        "cost": feature_cost(measurement),
        "cost_limit": case.feature.cost_limit,
        "peers": peers,
        "best_peer": best,
        "rival": rival,
        "ratio": measured[rival]["ratio"] if rival else None,
    }


def curve_record(dtype: str, samples: dict[int, list[float]]) -> Record:
    """t(L) and its steps; a step is the median of the rounds' own steps."""
    rounds = [dict(zip(samples, row, strict=True)) for row in zip(*samples.values(), strict=True)]
    by_round = [steps(times) for times in rounds]
    step = {L: median([one[L] for one in by_round]) for L in by_round[0]}
    return {
        "dtype": dtype,
        "seconds": {str(L): median(values) for L, values in samples.items()},
        "steps": {str(L): value for L, value in step.items()},
        "worst_step": max(step.values(), default=None),
        "step_limit": STEP_LIMIT,
    }


def with_limit_steps(curve: Record, peaks: Peaks) -> Record:
    """The curve with the steps of the machine's own limit: where arithmetic is the limit, twice
    the queries take twice the time."""
    cases = [curve_case(curve["dtype"], int(L)) for L in curve["seconds"]]
    times = {case.L: limit_seconds(case, peaks, case.kv_bytes / peaks.read) for case in cases}
    return curve | {"limit_steps": {str(L): value for L, value in steps(times).items()}}


# ----- verdicts -----------------------------------------------------------------------------------


def is_wrong(cell: Record) -> bool:
    return cell["ours"].get("error_share_of_bound", 0.0) > 1.0


def loses(cell: Record) -> bool:
    """A peer wins."""
    return cell["ratio"] is not None and cell["ratio"] < WINS_BELOW


def lags(cell: Record) -> bool:
    """Ahead or level, but by less than the margin, where the machine leaves room for it."""
    if cell["ratio"] is None or loses(cell):
        return False
    share = cell["share_of_limit"]
    room = share is None or share * LEAD < 1.0
    return room and cell["ratio"] < cell["target_ratio"]


def is_dear(cell: Record) -> bool:
    """The feature costs more than its limit."""
    return None not in (cell["cost"], cell["cost_limit"]) and cell["cost"] > cell["cost_limit"]


def under_target(cell: Record) -> bool:
    target, share = cell["target_share"], cell["share_of_limit"]
    return target is not None and share is not None and share < target


def is_steep(curve: Record) -> bool:
    """A step above STEP_LIMIT that the machine's limit does not make."""
    return any(
        step > max(curve["step_limit"], curve["limit_steps"][L])
        for L, step in curve["steps"].items()
    )


def steepest(curve: Record) -> str:
    """The steepest step in words."""
    L = max(curve["steps"], key=curve["steps"].get)
    return f"{curve['steps'][L]:.2f}, from L = {L} (the limit's own: {curve['limit_steps'][L]:.2f})"


def summary(cells: list[Record], curves: list[Record]) -> Record:
    """The cells that want attention, by key, worst first."""

    def keys(test, order) -> list[str]:
        return [cell["key"] for cell in sorted(filter(test, cells), key=order)]

    def ratio(cell: Record) -> float:
        return cell["ratio"]

    return {
        "wrong": keys(is_wrong, lambda cell: cell["key"]),
        "not_computed": keys(lambda cell: "reason" in cell["ours"], lambda cell: cell["key"]),
        "peer_wins": keys(loses, ratio),
        "short_lead": keys(lags, ratio),
        "under_target": keys(
            under_target, lambda cell: cell["share_of_limit"] / cell["target_share"]
        ),
        "dear_features": keys(is_dear, lambda cell: cell["cost_limit"] / cell["cost"]),
        "steep_curves": [curve["dtype"] for curve in curves if is_steep(curve)],
    }
