#!/usr/bin/env python3
"""Plants faults one by one in a copy of the tree; the test that is named for each must fail.

Those of the CPU's kernels, which are compiled for every instruction set, and of the bindings are
left out unless `--all` or `--only` takes them. The copy is built with the software Metal device,
once, then file by file; `--jobs N` plants in N copies at once. The exit status is 1 where a fault
survives, where its text no longer stands in the sources, where it does not build, or where a named
test fails without any fault.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

from binding_table import BINDING_MUTANTS
from call_table import CALL_MUTANTS
from capi_table import CAPI_MUTANTS
from core_table import CORE_MUTANTS
from cpu_table import CPU_MUTANTS
from fault import FaultError, Mutant, plant, restore
from feature_table import BAND_MUTANTS, HOST_MUTANTS, KERNEL_MUTANTS, SHADER_MUTANTS
from joint_table import JOINT_MUTANTS
from metal_table import METAL_MUTANTS
from queue_table import QUEUE_MUTANTS
from workshop import TREE, BuildError, Workshop

TEST_SECONDS = 300


def try_mutant(mutant: Mutant, workshop: Workshop) -> str:
    """Why the fault is a failure of the suite; empty where it was caught."""
    try:
        before = plant(mutant.edits, workshop.tree)
    except FaultError as error:
        return str(error)
    try:
        workshop.make(targets_of([mutant]))
        if workshop.case_passes(mutant.program, mutant.case, TEST_SECONDS):
            return f"survives {mutant.program}: {mutant.case}"
    except BuildError as error:
        return str(error)
    finally:
        restore(before)
    return ""


def targets_of(mutants: Sequence[Mutant]) -> list[str]:
    """What has to be built for the tests of these faults."""
    programs = {mutant.program for mutant in mutants}
    return sorted({"stage" if program.endswith(".py") else program for program in programs})


def share_of_the_day(mutants: Sequence[Mutant], share: int, day: date) -> list[Mutant]:
    """Every `share`-th fault; so many days in a row take all of them."""
    first = day.toordinal() % share
    if share > 1:
        print(f"faults {first + 1}, {first + 1 + share}, ... of {len(mutants)}", flush=True)
    return list(mutants[first::share])


def check_baseline(mutants: Sequence[Mutant], workshop: Workshop) -> list[str]:
    """What is wrong with the named tests before any fault is planted."""
    problems = []
    for program, case in sorted({(mutant.program, mutant.case) for mutant in mutants}):
        if not workshop.has_case(program, case):
            problems.append(f"{program} has no test: {case}")
        elif not workshop.case_passes(program, case, TEST_SECONDS):
            problems.append(f"{program} fails without a fault: {case}")
    return problems


def prepared(workshop: Workshop, targets: Sequence[str], compilers: int) -> Workshop:
    """The workshop as the tree is, and built."""
    workshop.refresh()
    workshop.configure()
    workshop.make(targets, compilers)
    return workshop


def plant_all(mutants: Sequence[Mutant], workshops: Sequence[Workshop]) -> list[str]:
    """Tries every fault, in as many workshops at once; what is wrong."""
    free: queue.Queue[Workshop] = queue.Queue()
    for workshop in workshops:
        free.put(workshop)

    def planted(mutant: Mutant) -> str:
        workshop = free.get()
        start = time.monotonic()
        try:
            problem = try_mutant(mutant, workshop)
        finally:
            free.put(workshop)
        verdict = "FAILURE" if problem else "caught"
        print(f"  {verdict:9} {mutant.name} ({time.monotonic() - start:.1f} s)", flush=True)
        return f"{mutant.name}: {problem}" if problem else ""

    with ThreadPoolExecutor(len(workshops)) as pool:
        return [problem for problem in pool.map(planted, mutants) if problem]


def run(mutants: Sequence[Mutant], directory: Path, jobs: int, isas: str) -> int:
    """Tries every fault on the CPU kernels of `isas`; returns the number of failures."""
    begin = time.monotonic()
    cores = os.cpu_count() or 2
    targets = targets_of(mutants)
    shops = [
        Workshop(
            directory / str(i),
            max(1, cores // jobs),
            python="stage" in targets,
            isas=isas,
        )
        for i in range(jobs)
    ]
    prepared(shops[0], targets, cores)
    problems = check_baseline(mutants, shops[0])
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda shop: prepared(shop, targets, shop.jobs), shops[1:]))
    print(f"built in {time.monotonic() - begin:.0f} s", flush=True)
    if not problems:
        problems = plant_all(mutants, shops)
    for problem in problems:
        print(f"mutants: {problem}", file=sys.stderr)
    total = time.monotonic() - begin
    print(f"{len(mutants)} mutants, {len(problems)} failures, {total:.0f} s")
    return len(problems)


def main(arguments: Sequence[str]) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="also CPU kernels and bindings")
    parser.add_argument(
        "--share", type=int, default=1, metavar="N", help="every N-th fault, other ones each day"
    )
    parser.add_argument("--list", action="store_true", help="name the faults and their tests")
    parser.add_argument("--only", default="", metavar="TEXT", help="faults whose name holds TEXT")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="copies of the tree")
    parser.add_argument("--work", type=Path, default=TREE / "build" / "mutants", metavar="DIR")
    parser.add_argument("--fresh", action="store_true", help="delete DIR first")
    options = parser.parse_args(arguments)
    wants_all = options.all or options.list or options.only
    table = (
        CORE_MUTANTS
        + CAPI_MUTANTS
        + METAL_MUTANTS
        + QUEUE_MUTANTS
        + HOST_MUTANTS
        + JOINT_MUTANTS
        + (
            CPU_MUTANTS
            + BAND_MUTANTS
            + KERNEL_MUTANTS
            + SHADER_MUTANTS
            + BINDING_MUTANTS
            + CALL_MUTANTS
            if wants_all
            else ()
        )
    )
    if options.share < 1:
        parser.error(f"--share takes 1 or more, not {options.share}")
    mutants = [mutant for mutant in table if options.only in mutant.name]
    mutants = share_of_the_day(mutants, options.share, date.today())
    if options.list:
        for mutant in mutants:
            print(f"{mutant.name}: {mutant.program}: {mutant.case}")
        return 0
    if not mutants:
        parser.error(f"no fault has {options.only!r} in its name")
    if options.fresh:
        shutil.rmtree(options.work, ignore_errors=True)
    try:
        # Faults of single instruction sets are in the other tables.
        isas = "runnable" if wants_all else "baseline"
        return 1 if run(mutants, options.work.resolve(), options.jobs, isas) else 0
    except BuildError as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
