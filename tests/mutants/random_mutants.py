#!/usr/bin/env python3
"""Kills a random sample of mutants; prints the rate by folder and the survivors' diffs.

Each mutant is one changed line, made by universalmutator. It is planted in a copy of the tree and
built; then the suites of its folder run one after the other until one fails. Not counted are those
that do not build, those that compile to the same library, and those that equivalent.py knows with a
reason. Every result is appended to a file under the mutant's hash and is taken from there the next
time, so that a sample goes on where it was left. The exit status is 1 where one survives.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import queue
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from equivalent import EQUIVALENT
from fault import restore
from killers import FOLDERS, Killer, all_killers, cores, in_order, limit_of
from workshop import TREE, BuildError, Workshop

from generate import RandomMutant, draw

COUNTED = ("killed", "survived")


@dataclass(frozen=True)
class Verdict:
    """What came of a mutant."""

    verdict: str  # killed, survived, equivalent, same code, no build
    by: str = ""


class Results:
    """Verdicts by hash, in a file of one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Verdict] = {}
        self._lock = threading.Lock()
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self.known[entry["hash"]] = Verdict(entry["verdict"], entry["by"])

    def add(self, mutant: RandomMutant, verdict: Verdict, seconds: float) -> None:
        """Appends one."""
        entry = {
            "hash": mutant.key,
            "verdict": verdict.verdict,
            "by": verdict.by,
            "folder": mutant.folder,
            "diff": mutant.diff(),
            "seconds": round(seconds, 1),
        }
        with self._lock:
            self.known[mutant.key] = verdict
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


class Bench:
    """Workshops, and what every suite takes without a mutant."""

    def __init__(self, directory: Path, jobs: int, folders: Sequence[str]) -> None:
        # Without a Metal device under test the build is GCC's, without Metal.
        on_metal = any(folder in ("metal", "shaders") for folder in folders)
        preset = "software-metal" if on_metal else "dev"
        compilers = max(1, cores() // jobs)
        self.shops = [
            Workshop(directory / preset / str(i), compilers, python=True, preset=preset)
            for i in range(jobs)
        ]
        self.killers = {
            folder: [k for k in all_killers(folder) if on_metal or k.device == "cpu"]
            for folder in folders
        }
        self.needs_build = any(k.needs_build for part in self.killers.values() for k in part)
        self.seconds: dict[str, float] = {}
        self.code: dict[str, str] = {}

    def prepare(self) -> None:
        """Builds all copies, the first one with every core, and times every suite."""
        begin = time.monotonic()
        self._build(self.shops[0], cores())
        with ThreadPoolExecutor(len(self.shops)) as pool:
            list(pool.map(lambda shop: self._build(shop, shop.jobs), self.shops[1:]))
        print(f"built in {time.monotonic() - begin:.0f} s", flush=True)
        self.code = {str(shop.build): code_of(shop) for shop in self.shops}
        begin = time.monotonic()
        wanted = {killer.key: killer for part in self.killers.values() for killer in part}
        self._time_all(sorted(wanted.values(), key=lambda killer: killer.key))
        print(f"suites without a mutant: {time.monotonic() - begin:.0f} s", flush=True)
        for folder, part in self.killers.items():
            if not any(killer.key in self.seconds for killer in part):
                raise BuildError(f"no suite of {folder} passes without a mutant")

    def _build(self, shop: Workshop, compilers: int) -> None:
        shop.refresh()
        if self.needs_build:
            shop.configure()
            shop.make(("all", "stage"), compilers)

    def _time_all(self, killers: Sequence[Killer]) -> None:
        """A suite that fails by itself kills nothing: it is left out, and said."""
        free: queue.Queue[Workshop] = queue.Queue()
        for shop in self.shops:
            free.put(shop)

        def timed(killer: Killer) -> None:
            shop = free.get()
            start = time.monotonic()
            try:
                passes = killer.passes(shop, 900)
            finally:
                free.put(shop)
            if passes:
                self.seconds[killer.key] = time.monotonic() - start
            else:
                print(f"  left out, for it fails without a mutant: {killer.key}", flush=True)

        with ThreadPoolExecutor(len(self.shops)) as pool:
            list(pool.map(timed, killers))

    def judge(self, mutant: RandomMutant, shop: Workshop) -> Verdict:
        """Plants the mutant and tries its killers."""
        path = shop.tree / mutant.path
        before = {path: mutant.apply(shop.tree)}
        try:
            return self._judge(mutant, shop)
        except BuildError:
            return Verdict("no build")
        finally:
            restore(before)

    def _judge(self, mutant: RandomMutant, shop: Workshop) -> Verdict:
        if mutant.path.startswith("csrc/"):
            shop.make(("metal_sdpa", "_core"))
            if code_of(shop) == self.code[str(shop.build)]:
                return Verdict("same code")
        for killer in in_order(self.killers[mutant.folder], mutant.path, self.seconds):
            if killer.needs_build:
                shop.make((killer.target(),))
            if not killer.passes(shop, limit_of(killer, self.seconds)):
                return Verdict("killed", killer.key)
        return Verdict("survived")


def code_of(shop: Workshop) -> str:
    """A hash of the libraries that were built."""
    digest = hashlib.sha256()
    for path in sorted([*shop.build.glob("lib/*.so*"), *shop.build.glob("**/_core*.so")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def rounds(folders: Sequence[str], seed: int) -> Iterator[RandomMutant]:
    """Mutants of all folders in turn."""
    draws = [draw(folder, seed) for folder in folders]
    while True:
        for one in draws:
            yield next(one)


def run_sample(
    bench: Bench, results: Results, stream: Iterator[RandomMutant], count: int, until: float
) -> list[tuple[RandomMutant, Verdict]]:
    """Judges mutants until `count` of them counted."""
    free: queue.Queue[Workshop] = queue.Queue()
    for shop in bench.shops:
        free.put(shop)
    sample: list[tuple[RandomMutant, Verdict]] = []
    lock = threading.Lock()

    def one(mutant: RandomMutant) -> Verdict:
        if mutant.key in EQUIVALENT:
            return Verdict("equivalent")
        if mutant.key in results.known:
            return results.known[mutant.key]
        shop = free.get()
        start = time.monotonic()
        try:
            verdict = bench.judge(mutant, shop)
        finally:
            free.put(shop)
        seconds = time.monotonic() - start
        results.add(mutant, verdict, seconds)
        print(f"  {verdict.verdict:9} {mutant.folder}: {mutant.path}:{mutant.line}", end=" ")
        print(f"{verdict.by} ({seconds:.0f} s)", flush=True)
        return verdict

    def take() -> RandomMutant | None:
        """The next mutant, where the sample has room for one more."""
        with lock:
            counted = sum(verdict.verdict in COUNTED for _, verdict in sample)
            if counted + len(busy) >= count or time.monotonic() > until:
                return None
            mutant = next(stream, None)
            if mutant is not None:
                busy.add(mutant.key)
            return mutant

    def worker() -> None:
        """Ends when nothing is left to take; what others still try may make room again."""
        while True:
            mutant = take()
            if mutant is None:
                if not busy or time.monotonic() > until:
                    return
                time.sleep(0.2)
                continue
            verdict = None
            try:
                verdict = one(mutant)
            finally:
                with lock:
                    busy.discard(mutant.key)
                    if verdict is not None:
                        sample.append((mutant, verdict))

    busy: set[str] = set()
    with ThreadPoolExecutor(len(bench.shops)) as pool:
        for future in [pool.submit(worker) for _ in bench.shops]:
            future.result()
    return sample


def report(sample: Sequence[tuple[RandomMutant, Verdict]]) -> int:
    """Prints the rates and the survivors; returns their number."""
    counts = Counter((mutant.folder, verdict.verdict) for mutant, verdict in sample)
    kinds = ("killed", "survived", "equivalent", "same code", "no build")
    print(f"\n{'folder':<10}" + "".join(f"{kind:>12}" for kind in kinds) + f"{'rate':>8}")
    for folder in (*FOLDERS, "all"):
        row = [
            sum(n for (of, kind), n in counts.items() if kind == wanted and folder in (of, "all"))
            for wanted in kinds
        ]
        total = row[0] + row[1]
        if sum(row) > 0:
            rate = f"{100 * row[0] / total:.0f} %" if total else "-"
            print(f"{folder:<10}" + "".join(f"{n:>12}" for n in row) + f"{rate:>8}")
    survivors = [mutant for mutant, verdict in sample if verdict.verdict == "survived"]
    for mutant in survivors:
        print(f"\nsurvived {mutant.key}: {mutant.diff()}")
    return len(survivors)


def main(arguments: Sequence[str]) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="of the sample; a fresh one unless given")
    parser.add_argument("--count", type=int, default=60, metavar="N", help="mutants that count")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="copies of the tree")
    parser.add_argument("--folders", default=",".join(FOLDERS), metavar="A,B")
    parser.add_argument("--minutes", type=float, default=1e9, help="no new mutant after so many")
    parser.add_argument("--report", action="store_true", help="survivors are no failure")
    parser.add_argument("--work", type=Path, default=TREE / "build" / "random-mutants")
    parser.add_argument("--results", type=Path, help="the file of results, in DIR unless given")
    options = parser.parse_args(arguments)
    until = time.monotonic() + 60 * options.minutes
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    folders = options.folders.split(",")
    print(f"seed {seed}, {options.count} mutants of {', '.join(folders)}", flush=True)
    bench = Bench(options.work.resolve(), options.jobs, folders)
    try:
        bench.prepare()
    except BuildError as error:
        print(f"random_mutants: {error}", file=sys.stderr)
        return 1
    results = Results(options.results or options.work / "results.jsonl")
    sample = run_sample(bench, results, rounds(folders, seed), options.count, until)
    survivors = report(sample)
    return 1 if survivors and not options.report else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
