"""The command: options, the loop over the cases, and what is written."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .data import Pool
from .limits import Limits, best_of
from .machine import last_level_cache_bytes, load_average, machine_facts
from .measure import Measurement, measure_case, measure_curve
from .peers import PEERS, Peer, load_peer, load_peers
from .plot import write_plot
from .results import cell_record, curve_record, summary, with_limit_steps
from .roofline import Peaks
from .shapes import CURVE_LENGTHS, DTYPES, Case, all_cases, curve_case
from .table import print_family, print_summary

RUNS = 15
QUICK_RUNS = 5
QUICK_CURVE_LENGTHS = (1, 2, 3, 4, 8, 9, 16, 17, 32, 33, 48, 64)
CURVE_RUNS = 7
LATE_DIVISOR = 3  # a case that is reached when the time is spent gets that part of the rounds
BUDGET, QUICK_BUDGET = 660, 100  # seconds
SLOW_PEERS = ("mlx",)  # 30 to 100 times behind: left out of --quick


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the cases, fewer rounds")
    parser.add_argument("--only", metavar="REGEX", help="cases whose family/name matches")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--peers", metavar="A,B", help=f"of {','.join(PEERS)}; none: only ours")
    parser.add_argument("--runs", type=int, help=f"rounds a case ({RUNS}; quick: {QUICK_RUNS})")
    parser.add_argument("--threads", type=int, help="default: what metal_sdpa takes")
    budget = f"seconds after which a case gets a third of the rounds ({BUDGET}; {QUICK_BUDGET})"
    parser.add_argument("--budget", type=float, metavar="SECONDS", help=budget)
    parser.add_argument("--out", type=Path, default=Path("build/bench-results"), metavar="DIR")
    options = parser.parse_args(arguments)
    if options.runs is not None and options.runs < 1:
        parser.error("--runs takes 1 or more")
    return options


def chosen_peers(options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Names to load, and why others are left out."""
    if options.peers is not None:
        names = [name for name in options.peers.split(",") if name and name != "none"]
        unknown = sorted(set(names) - set(PEERS))
        if unknown:
            raise SystemExit(f"--peers: {', '.join(unknown)}: known are {', '.join(PEERS)}")
        return names, {}
    if options.quick:
        kept = [name for name in PEERS if name not in SLOW_PEERS]
        return kept, dict.fromkeys(SLOW_PEERS, "left out of --quick")
    return list(PEERS), {}


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    cases = [case for case in all_cases() if case.quick or not options.quick]
    if options.only:
        pattern = re.compile(options.only)
        cases = [case for case in cases if pattern.search(case.key)]
    return cases


def chosen_curves(options: argparse.Namespace) -> list[str]:
    """The dtypes whose curve t(L) is measured."""
    pattern = re.compile(options.only or "")
    return [dtype for dtype in DTYPES if pattern.search(f"curve/{dtype}")]


class Run:
    """One run of the bench: the libraries, the limits, and what was measured so far."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.options = options
        self.console = console
        self.runs = options.runs or (QUICK_RUNS if options.quick else RUNS)
        self.budget = options.budget or (QUICK_BUDGET if options.quick else BUDGET)
        self.start = time.monotonic()
        self.late = 0  # cases that came after the budget
        self.interrupted = False
        self.ours, self.threads = self._load_ours(options.threads)
        names, left_out = chosen_peers(options)
        self.peers, absent = load_peers(names, self.threads)
        self.absent = left_out | absent
        self.limits = Limits(self.threads)
        self.facts = machine_facts()
        self.cache_bytes = last_level_cache_bytes()
        self.pool = Pool()

    @staticmethod
    def _load_ours(threads: int | None) -> tuple[Peer, int]:
        import metal_sdpa

        threads = threads or metal_sdpa.get_num_threads()
        return load_peer("ours", "Ours", threads), threads

    def describe(self, peaks: Peaks) -> None:
        dot = f", bf16 dot {peaks.bf16_dot / 1e9:.0f} GFLOP/s" if peaks.bf16_dot else ""
        self.console.print(
            f"[bold]{self.facts['processor']}[/], {self.threads} threads, {self.limits.isa}: "
            f"FMA {peaks.fma_f32 / 1e9:.0f} GFLOP/s{dot}, read {peaks.read / 1e9:.1f} GB/s",
            highlight=False,
        )
        libraries = [f"{peer.name} {peer.version}" for peer in (self.ours, *self.peers)]
        self.console.print("; ".join(libraries), highlight=False)
        for name, reason in self.absent.items():
            self.console.print(f"  without {name}: {reason}", style="dim", highlight=False)

    @property
    def late_runs(self) -> int:
        return max(2, self.runs // LATE_DIVISOR)

    def rounds(self) -> int:
        """Rounds of the next case."""
        if time.monotonic() - self.start < self.budget:
            return self.runs
        self.late += 1
        return self.late_runs

    def measure(self, case: Case) -> Measurement:
        return measure_case(
            case, self.ours, self.peers, self.limits, self.pool, self.cache_bytes, self.rounds()
        )

    def measure_curve(self, dtype: str) -> dict[str, Any]:
        lengths = QUICK_CURVE_LENGTHS if self.options.quick else CURVE_LENGTHS
        shapes = [curve_case(dtype, L) for L in lengths]
        runs = min(self.runs, CURVE_RUNS)
        samples = measure_curve(shapes, self.ours, self.pool, self.cache_bytes, runs)
        return curve_record(dtype, samples)

    def measure_all(self, cases: list[Case], curves: list[str]):
        """Every case and curve under one progress bar. Ctrl-C ends the measuring; what was
        measured before is kept."""
        measurements: list[Measurement] = []
        curve_records: list[dict[str, Any]] = []
        steps = [(case.key, measurements, self.measure, case) for case in cases]
        steps += [(f"curve/{dtype}", curve_records, self.measure_curve, dtype) for dtype in curves]
        columns = (
            TextColumn("{task.description:42}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task("", total=len(steps))
            for done, (name, records, measure, what) in enumerate(steps):
                progress.update(task, description=name, completed=done)
                if not self.console.is_terminal:
                    self.console.print(f"{done + 1}/{len(steps)} {name}")
                try:
                    records.append(measure(what))
                except KeyboardInterrupt:
                    self.interrupted = True
                    break
        return measurements, curve_records

    def document(self, measurements, curves, peaks: Peaks, seconds: float) -> dict[str, Any]:
        cells = [cell_record(measurement, peaks) for measurement in measurements]
        curves = [with_limit_steps(curve, peaks) for curve in curves]
        return {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "settings": {
                "quick": self.options.quick,
                "only": self.options.only,
                "runs": self.runs,
                "late_cases": self.late,
                "interrupted": self.interrupted,
                "threads": self.threads,
            },
            "machine": self.facts | {"load_average_after": load_average()},
            "isa": self.limits.isa,
            "versions": {peer.name: peer.version for peer in (self.ours, *self.peers)},
            "absent": self.absent,
            "peaks": peaks.as_dict(),
            "cells": cells,
            "curves": curves,
            "summary": summary(cells, curves),
        }


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 where a result of ours is out of its bound or missing."""
    options = parse_arguments(arguments)
    cases, curves = chosen_cases(options), chosen_curves(options)
    if options.list:
        print("\n".join([case.key for case in cases] + [f"curve/{dtype}" for dtype in curves]))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 150)
    run = Run(options, console)
    first = run.limits.measure(run.cache_bytes)
    run.describe(first)
    measurements, curve_records = run.measure_all(cases, curves)
    peaks = best_of(first, run.limits.measure(run.cache_bytes))
    seconds = time.monotonic() - run.start
    document = run.document(measurements, curve_records, peaks, seconds)

    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bench.json").write_text(json.dumps(document, indent=1) + "\n")
    names = [peer.name for peer in run.peers]
    for family, group in groupby(document["cells"], key=lambda cell: cell["family"]):
        print_family(console, family, list(group), names)
    console.print(
        "Under a peer: its time over ours, above 1 where ours is faster; the best one underlined, "
        "and the quartiles of its ratio.",
        style="dim",
    )
    print_summary(console, document)
    if run.late:
        console.print(
            f"[yellow]{run.late} cases came after the {run.budget:.0f} s of --budget and had "
            f"{run.late_runs} rounds[/]"
        )
    write_plot(document, options.out / "bench.png")
    console.print(f"{seconds:.0f} s; {options.out}/bench.json, {options.out}/bench.png")
    if run.interrupted:
        console.print("[yellow]interrupted: the cases after that are missing[/]")
        return 130
    failed = document["summary"]["wrong"] or document["summary"]["not_computed"]
    return 1 if failed else 0
