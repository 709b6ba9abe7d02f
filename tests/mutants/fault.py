"""What a planted fault is, and where it goes.

A fault is a substitution in one or more files. Its text is found token by token, whatever the line
breaks between them, in the named file or, once code has moved, in the one other file of that part
of the tree that holds it. It must stand there exactly once: a fault whose text no longer matches is
a failure, like one that no test notices.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Code moves within these.
PARTS = (
    "csrc/capi",
    "csrc/core",
    "csrc/cpu",
    "csrc/metal",
    "csrc/bindings",
    "python/metal_sdpa",
    "shaders",
    "bench",
    "tools",
)
SUFFIXES = {".cpp", ".h", ".metal", ".py", ".sh"}
TOKEN = re.compile(r"\w+|[^\w\s]")


class FaultError(Exception):
    """A fault that cannot be planted."""


@dataclass(frozen=True)
class Edit:
    """One substitution; `path` from the top of the tree.

    `within`: a function or class, where the text alone stands in more than one place.
    """

    path: str
    old: str
    new: str
    within: str = ""


@dataclass(frozen=True)
class Mutant:
    """A fault and the test that kills it: a case of a C++ program, or of a file of pytest's."""

    name: str
    edits: tuple[Edit, ...]
    program: str
    case: str


def mutant(
    name: str, path: str, old: str, new: str, program: str, case: str, within: str = ""
) -> Mutant:
    """A fault in one place."""
    return Mutant(name, (Edit(path, old, new, within),), program, case)


def pattern_of(text: str) -> re.Pattern[str]:
    """The tokens of the text with any space between them."""
    pattern = ""
    before = ""
    for token in TOKEN.findall(text):
        both_words = before[-1:].isalnum() and token[0].isalnum()
        pattern += (r"\s+" if both_words else r"\s*") * bool(before) + re.escape(token)
        before = token.replace("_", "a")
    start = r"(?<!\w)" if re.match(r"\s*\w", text) else ""
    end = r"(?!\w)" if before[-1:].isalnum() else ""
    return re.compile(start + pattern + end)


def blocks_of(name: str, text: str) -> Iterator[tuple[int, int]]:
    """From `name` to the end of the braces that follow it, wherever it is defined."""
    word = re.escape(name)
    heads = rf"\b(?:(?:class|struct)\s+{word}\b[^;{{}}()]*|{word}\s*\([^;{{}}]*)\{{"
    for match in re.finditer(heads, text):
        depth = 1
        end = match.end()
        while depth > 0 and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        yield match.start(), end


def places_of(edit: Edit, text: str) -> list[tuple[int, int]]:
    """Where the edit's text stands."""
    found = [match.span() for match in pattern_of(edit.old).finditer(text)]
    if not edit.within:
        return found
    blocks = list(blocks_of(edit.within, text))
    return [
        (begin, end)
        for begin, end in found
        if any(first <= begin and end <= last for first, last in blocks)
    ]


def candidates(edit: Edit, tree: Path) -> Iterator[Path]:
    """The edit's own file, then the others of its part of the tree."""
    own = tree / edit.path
    yield own
    for part in PARTS:
        if edit.path.startswith(part + "/"):
            for path in sorted((tree / part).rglob("*")):
                if path.suffix in SUFFIXES and path != own:
                    yield path


def locate(edit: Edit, tree: Path) -> tuple[Path, tuple[int, int]]:
    """The file that holds the edit's text, and where."""
    elsewhere = []
    for path in candidates(edit, tree):
        places = places_of(edit, path.read_text(encoding="utf-8")) if path.is_file() else []
        if path == tree / edit.path and len(places) == 1:
            return path, places[0]
        elsewhere += [(path, place) for place in places]
    if len(elsewhere) == 1:
        return elsewhere[0]
    counted = f"{len(elsewhere)} times in {edit.path} and beside it"
    raise FaultError(f"stands {counted}: {edit.old.strip()}")


def plant(edits: tuple[Edit, ...], tree: Path) -> dict[Path, str]:
    """Makes the substitutions; returns what the files held before."""
    before: dict[Path, str] = {}
    try:
        for edit in edits:
            path, (begin, end) = locate(edit, tree)
            text = path.read_text(encoding="utf-8")
            before.setdefault(path, text)
            new = edit.new.strip()
            path.write_text(text[:begin] + new + text[end:], encoding="utf-8")
    except FaultError:
        restore(before)
        raise
    return before


def restore(before: dict[Path, str]) -> None:
    """Puts files back."""
    for path, text in before.items():
        path.write_text(text, encoding="utf-8")
