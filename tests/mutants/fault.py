"""What a planted fault is.

A fault is a substitution in one or more files. `old` must stand in the file exactly once: a fault
whose text no longer matches is a failure, like one that no test notices.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """One substitution; `path` from the top of the tree."""

    path: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A fault and the test case (of one test program) that kills it."""

    name: str
    edits: tuple[Edit, ...]
    program: str
    case: str


def mutant(name: str, path: str, old: str, new: str, program: str, case: str) -> Mutant:
    """A fault in one place."""
    return Mutant(name, (Edit(path, old, new),), program, case)
