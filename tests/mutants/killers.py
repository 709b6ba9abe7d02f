"""What may kill a mutant: programs of the C++ suite and files of the Python one, in an order in
which most die early.

Those that speak of the mutant's file come first, then all others of its folder, the quick ones
first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workshop import TEST_ENVIRONMENT, TREE, Workshop

# A mutant may be slower, and several run at once.
PATIENCE = 6
LEAST_SECONDS = 60
# Words of file names that say nothing.
COMMON_WORDS = {"test", "sdpa", "metal", "cpu", "plan"}


@dataclass(frozen=True)
class Killer:
    """A program of tests/cpp, or a file of tests/python on one device."""

    name: str
    device: str

    @property
    def is_python(self) -> bool:
        """Whether pytest runs it."""
        return self.name.endswith(".py")

    @property
    def needs_build(self) -> bool:
        """Whether it uses what was built: the tests of bench and tools do not."""
        return (
            re.fullmatch(r"test_(bench|bench_verdicts|tools|tools_checks)\.py", self.name) is None
        )

    @property
    def key(self) -> str:
        """What it is called in tables."""
        return f"{self.name} on {self.device}"

    def target(self) -> str:
        """What has to be built."""
        return "stage" if self.is_python else self.name

    def passes(self, workshop: Workshop, seconds: float) -> bool:
        """Whether all its tests pass in time."""
        if self.is_python:
            environment = {**TEST_ENVIRONMENT, "METAL_SDPA_TEST_DEVICES": self.device}
            arguments = [f"tests/python/{self.name}"]
            if not self.needs_build:
                arguments.append("--noconftest")  # which imports the package
            if self.device == "metal":
                arguments += ["-m", "not frameworks"]
            status = workshop.run_pytest(arguments, seconds, environment)
            return status in (0, 5)  # 5: every test left out
        return workshop.run_program(self.name, seconds, self.device)


@dataclass(frozen=True)
class Folder:
    """A part of the tree that is mutated."""

    paths: tuple[str, ...]
    killers: tuple[tuple[str, str], ...]  # patterns of names, devices


_CPP_CPU = (r"(?!metal_)\w+_test", "cpu")
_CPP_METAL = (r"metal_\w+_test", "cpu,metal")
_PYTHON_CPU = (r"test_(?!bench|tools|mutants|install)\w+\.py", "cpu")
_PYTHON_METAL = (
    r"test_(encoder|graph|hazards|params|semantics|properties|sweep|threads|buffer)\.py",
    "metal",
)

FOLDERS = {
    "capi": Folder(("csrc/capi",), ((r"c_api\w*_test", "cpu"), (r"test_c_api\.py", "cpu"))),
    "core": Folder(
        ("csrc/core", "csrc/include"), (_CPP_CPU, _PYTHON_CPU, _CPP_METAL, _PYTHON_METAL)
    ),
    "cpu": Folder(("csrc/cpu",), (_CPP_CPU, _PYTHON_CPU)),
    "metal": Folder(("csrc/metal",), (_CPP_METAL, _PYTHON_METAL)),
    "bindings": Folder(("csrc/bindings", "python"), (_PYTHON_CPU,)),
    "shaders": Folder(("shaders",), (_CPP_METAL, _PYTHON_METAL)),
    "bench": Folder(("bench",), ((r"test_bench\w*\.py", "cpu"),)),
    "tools": Folder(("tools",), ((r"test_tools\w*\.py", "cpu"),)),
}


def all_killers(folder: str) -> list[Killer]:
    """Of a folder, in no order."""
    programs = [path.stem for path in (TREE / "tests" / "cpp").glob("*_test.cpp")]
    files = [path.name for path in (TREE / "tests" / "python").glob("test_*.py")]
    return [
        Killer(name, device)
        for pattern, device in FOLDERS[folder].killers
        for name in sorted(programs + files)
        if re.fullmatch(pattern, name)
    ]


def words_of(name: str) -> set[str]:
    """Words of a file's name that say what it is about."""
    return set(re.findall(r"[a-z]+", name)) - COMMON_WORDS


def in_order(killers: Sequence[Killer], path: str, seconds: dict[str, float]) -> list[Killer]:
    """The killers of a mutant of `path`, the likeliest and quickest first."""
    words = words_of(Path(path).stem)

    def place(killer: Killer) -> tuple[bool, float]:
        own = words & words_of(Path(killer.name).stem)
        return not own, seconds[killer.key]

    return sorted((k for k in killers if k.key in seconds), key=place)


def limit_of(killer: Killer, seconds: dict[str, float]) -> float:
    """After how long it counts as hanging."""
    return max(LEAST_SECONDS, PATIENCE * seconds[killer.key])


def cores() -> int:
    """Processors that may be used."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
