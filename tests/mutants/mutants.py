#!/usr/bin/env python3
"""Plants faults one by one in a copy of the tree; the test that is named for each must fail.

By default each fault is built and its one test case is run; those of the CPU's kernels, which are
compiled for every instruction set, are left out unless `--all` or `--only` takes them. `--full`
runs every test program and says which fail. The copy is built with the software Metal device, once,
then file by file. The exit status is 1 where a fault survives, where its text no longer stands in
the sources, where it does not build, or where a named test fails without any fault.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cpu_table import CPU_MUTANTS
from fault import Mutant
from metal_table import METAL_MUTANTS
from queue_table import QUEUE_MUTANTS

TREE = Path(__file__).resolve().parents[2]
COPIED = (
    "CMakeLists.txt",
    "CMakePresets.json",
    "cmake",
    "csrc",
    "shaders",
    "tests/CMakeLists.txt",
    "tests/cpp",
    "tests/fuzz",
    "tests/metal",
    "tools",
)
TEST_SECONDS = 120
# Every fault in a shader is a compile of all shaders: for a single test -O0 is the faster way.
TEST_ENVIRONMENT = {
    "METAL_SDPA_TEST_DEVICES": "cpu,metal",
    "SOFTWARE_METAL_OPTIMIZATION": "-O0",
    "SOFTWARE_METAL_LEAKS": "fatal",
}


class MutantError(Exception):
    """Something that is wrong with a fault or with the build."""


class Workshop:
    """A copy of the sources and its build."""

    def __init__(self, directory: Path) -> None:
        self.tree = directory / "tree"
        self.build = directory / "build"

    def refresh(self) -> None:
        """Copies what differs from the tree, so that an old build is used as far as it holds."""
        wanted = {path for name in COPIED for path in files_below(TREE / name)}
        for path in wanted:
            copy = self.tree / path.relative_to(TREE)
            content = path.read_bytes()
            if copy.is_file() and copy.read_bytes() == content:
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
        for copy in files_below(self.tree):
            if TREE / copy.relative_to(self.tree) not in wanted:
                copy.unlink()

    def configure(self) -> None:
        """Configures the build; headers and their cache are those of the tree."""
        command = ["cmake", "--preset", "software-metal", "-S", str(self.tree), "-B"]
        command += [str(self.build), "-DMETAL_SDPA_PYTHON=OFF", "-DCMAKE_BUILD_TYPE=None"]
        command += ["-DCMAKE_CXX_FLAGS=-O1", f"-DMETAL_SDPA_CACHE_DIR={TREE / '.cache'}"]
        if "METAL_CPP_DIR" in os.environ:
            command.append(f"-DMETAL_CPP_DIR={os.environ['METAL_CPP_DIR']}")
        run_checked(command, "configure")

    def make(self, programs: Sequence[str]) -> None:
        """Builds test programs, or everything where none is named."""
        targets = ["--target", *programs] if programs else []
        jobs = str(os.cpu_count() or 2)
        run_checked(["cmake", "--build", str(self.build), "-j", jobs, *targets], "build")

    def passes(self, program: str, case: str) -> bool:
        """Whether one test case passes; a crash or a hang is no pass."""
        executable = self.build / "tests" / "cpp" / program
        pattern = case.replace(",", "?")  # doctest takes commas for a list of patterns
        command = [str(executable), f"--test-case={pattern}", "--minimal"]
        environment = {**os.environ, **TEST_ENVIRONMENT}
        try:
            result = subprocess.run(
                command, env=environment, capture_output=True, timeout=TEST_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return False
        return result.returncode == 0

    def has_case(self, program: str, case: str) -> bool:
        """Whether the program has exactly this case."""
        executable = self.build / "tests" / "cpp" / program
        command = [str(executable), "--list-test-cases"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return result.stdout.splitlines().count(case) == 1

    def failing_tests(self) -> list[str]:
        """Names of the ctest entries that fail."""
        command = ["ctest", "--test-dir", str(self.build), "--timeout", "600"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            return []
        lines = result.stdout.partition("The following tests FAILED:")[2].splitlines()
        return [line.split()[2] for line in lines if " - " in line]


def files_below(path: Path) -> list[Path]:
    """The file itself, or all files of a directory but caches."""
    if path.is_file():
        return [path]
    return [file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts]


def run_checked(command: Sequence[str], what: str) -> None:
    """Runs a command; its whole output is the error where it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise MutantError(f"{what} failed:\n{result.stdout[-4000:]}{result.stderr[-4000:]}")


def plant(mutant: Mutant, tree: Path) -> dict[Path, str]:
    """Makes the substitutions; returns what the files held before."""
    before: dict[Path, str] = {}
    for edit in mutant.edits:
        path = tree / edit.path
        text = path.read_text(encoding="utf-8")
        before.setdefault(path, text)
        count = text.count(edit.old)
        if count != 1:
            restore(before)
            raise MutantError(f"{edit.path} holds the text {count} times: {edit.old.strip()}")
        path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")
    return before


def restore(before: dict[Path, str]) -> None:
    """Puts files back."""
    for path, text in before.items():
        path.write_text(text, encoding="utf-8")


def try_mutant(mutant: Mutant, workshop: Workshop, full: bool) -> str:
    """Why the fault is a failure of the suite; empty where it was caught."""
    try:
        before = plant(mutant, workshop.tree)
    except MutantError as error:
        return str(error)
    try:
        workshop.make([] if full else [mutant.program])
        if workshop.passes(mutant.program, mutant.case):
            return f"survives {mutant.program}: {mutant.case}"
        if full:
            print(f"    fails: {', '.join(workshop.failing_tests())}", flush=True)
    except MutantError as error:
        return str(error)
    finally:
        restore(before)
    return ""


def check_baseline(mutants: Sequence[Mutant], workshop: Workshop) -> list[str]:
    """What is wrong with the named tests before any fault is planted."""
    problems = []
    for program, case in sorted({(mutant.program, mutant.case) for mutant in mutants}):
        if not workshop.has_case(program, case):
            problems.append(f"{program} has no test case: {case}")
        elif not workshop.passes(program, case):
            problems.append(f"{program} fails without a fault: {case}")
    return problems


def run(mutants: Sequence[Mutant], workshop: Workshop, full: bool) -> int:
    """Tries every fault; returns the number of failures."""
    begin = time.monotonic()
    workshop.refresh()
    workshop.configure()
    workshop.make([] if full else sorted({mutant.program for mutant in mutants}))
    problems = check_baseline(mutants, workshop)
    sound = not problems
    print(f"built in {time.monotonic() - begin:.0f} s", flush=True)
    for mutant in mutants:
        start = time.monotonic()
        problem = try_mutant(mutant, workshop, full) if sound else "not tried"
        if problem:
            problems.append(f"{mutant.name}: {problem}")
        verdict = "FAILURE" if problem else "caught"
        print(f"  {verdict:9} {mutant.name} ({time.monotonic() - start:.1f} s)", flush=True)
    for problem in problems:
        print(f"mutants: {problem}", file=sys.stderr)
    total = time.monotonic() - begin
    print(f"{len(mutants)} mutants, {len(problems)} failures, {total:.0f} s")
    return len(problems)


def main(arguments: Sequence[str]) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="run every test program for each")
    parser.add_argument("--all", action="store_true", help="also faults of the CPU's kernels")
    parser.add_argument("--list", action="store_true", help="name the faults and their tests")
    parser.add_argument("--only", default="", metavar="TEXT", help="faults whose name holds TEXT")
    parser.add_argument("--work", type=Path, default=TREE / "build" / "mutants", metavar="DIR")
    parser.add_argument("--fresh", action="store_true", help="delete DIR first")
    options = parser.parse_args(arguments)
    wants_all = options.all or options.list or options.only
    table = METAL_MUTANTS + QUEUE_MUTANTS + (CPU_MUTANTS if wants_all else ())
    mutants = [mutant for mutant in table if options.only in mutant.name]
    if options.list:
        for mutant in mutants:
            print(f"{mutant.name}: {mutant.program}: {mutant.case}")
        return 0
    if not mutants:
        parser.error(f"no fault has {options.only!r} in its name")
    if options.fresh:
        shutil.rmtree(options.work, ignore_errors=True)
    try:
        return 1 if run(mutants, Workshop(options.work.resolve()), options.full) else 0
    except MutantError as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
