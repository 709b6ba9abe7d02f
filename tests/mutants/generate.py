"""Random mutants of the project's sources, made by universalmutator.

A mutant is known by a hash of what it changes and of the lines around that, so that it is the same
one after changes elsewhere in its file.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from killers import FOLDERS
from workshop import TREE, project_files

RULES = {
    ".cpp": ("universal.rules", "c_like.rules", "cpp.rules"),
    ".h": ("universal.rules", "c_like.rules", "cpp.rules"),
    ".metal": ("universal.rules", "c_like.rules"),
    ".py": ("universal.rules", "python.rules"),
}
# Comments, includes, what only the compiler reads, and compile-time checks.
SKIPPED = (
    r"^\s*(#|//|\*)",
    r"static_assert|SDPA_SHARED_ASSERT",
    r"^\s*(import|from|namespace|using|template|public|private|friend) ?",
    r"^[\s})\];,]*(//.*)?$",
    r" = (delete|default);$",
)
# What measures a processor, where no number is right, and what draws pictures.
UNTESTABLE = {"bench/peaks.cpp", "bench/plot.py"}
# Libraries that a file of bench/peers needs, where no test runs it without them.
NEEDED = {
    "bench/peers/ggml.py": "ggml",
    "bench/peers/onnxruntime.py": "onnxruntime",
    "bench/peers/openvino.py": "openvino",
    "bench/peers/openvino_models.py": "openvino",
    "bench/run.py": "rich",
    "bench/table.py": "rich",
}


def is_testable(path: str) -> bool:
    """Whether this environment can run the file at all."""
    if path in UNTESTABLE:
        return False
    return path not in NEEDED or find_spec(NEEDED[path]) is not None


# Lines that are text alone: docstrings, and strings across lines.
TEXT_ALONE = re.compile(r'^\s*(?:[rbf]?"(?:[^"\\]|\\.)*"[,;)]*|""".*|[^"]*""")\s*$')
AROUND = 2


@dataclass(frozen=True)
class RandomMutant:
    """One changed line."""

    folder: str
    path: str
    line: int  # from 1
    old: str
    new: str
    key: str

    def diff(self) -> str:
        """For a person."""
        return f"{self.path}:{self.line}\n-{self.old.rstrip()}\n+{self.new.rstrip()}"

    def apply(self, tree: Path) -> str:
        """Changes the file; returns what it held before."""
        path = tree / self.path
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        lines[self.line - 1] = self.new
        path.write_text("".join(lines), encoding="utf-8")
        return text


def key_of(path: str, lines: list[str], line: int, new: str) -> str:
    """The hash that names a mutant."""
    around = lines[max(0, line - 1 - AROUND) : line + AROUND]
    text = "\n".join([path, *(" ".join(part.split()) for part in [*around, "=>", new])])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def sources(folder: str) -> tuple[str, ...]:
    """Files of a folder that rules exist for."""
    roots = [Path(path) for path in FOLDERS[folder].paths]
    return tuple(
        str(path)
        for path in sorted(project_files())
        if path.suffix in RULES
        and any(root in path.parents for root in roots)
        and is_testable(str(path))
    )


def is_hopeless(old: str, new: str) -> bool:
    """Whether what changes is a digit of a name, a bracket of a template, or makes a pointer or
    reference: no compiler takes that."""
    at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), len(old) - 1)
    before = old[at - 1] if at > 0 else " "
    if old[at].isdigit() or new[at : at + 1] == "(":
        return before.isalpha() or before == "_"
    return old[at] in "<>&*" and not before.isspace()


def docstring_lines(path: str, lines: list[str]) -> set[int]:
    """Lines of a Python file that are text for people."""
    if not path.endswith(".py"):
        return set()
    found: set[int] = set()
    for node in ast.walk(ast.parse("".join(lines))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


@cache
def mutants_of_file(folder: str, path: str) -> dict[int, tuple[RandomMutant, ...]]:
    """All mutants of a file by line."""
    from universalmutator import mutator

    lines = (TREE / path).read_text(encoding="utf-8").splitlines(keepends=True)
    with contextlib.redirect_stdout(io.StringIO()):
        made = mutator.mutants_regexp(
            lines,
            ruleFiles=list(RULES[Path(path).suffix]),
            ignorePatterns=list(SKIPPED),
            ignoreStringOnly=True,
        )
    by_line: dict[int, list[RandomMutant]] = {}
    documentation = docstring_lines(path, lines)
    for line, new, *_ in made:
        old = lines[line - 1]
        # A second line is a break or continue, which hardly ever compiles.
        is_idle = "".join(old.split()) == "".join(new.split()) or new.count("\n") > 1
        is_text = line in documentation or TEXT_ALONE.match(old)
        if is_idle or is_text or (not path.endswith(".py") and is_hopeless(old, new)):
            continue
        key = key_of(path, lines, line, new)
        by_line.setdefault(line, []).append(RandomMutant(folder, path, line, old, new, key))
    return {line: tuple(mutants) for line, mutants in by_line.items()}


def draw(folder: str, seed: int) -> Iterator[RandomMutant]:
    """Mutants of a folder without end, each once: every line is as likely as any other."""
    rng = random.Random(f"{seed} {folder}")
    counts = [(TREE / path).read_bytes().count(b"\n") for path in sources(folder)]
    seen = set()
    for _ in range(100_000):
        path = rng.choices(sources(folder), counts)[0]
        by_line = mutants_of_file(folder, path)
        if not by_line:
            continue
        mutant = rng.choice(by_line[rng.choice(sorted(by_line))])
        if mutant.key not in seen:
            seen.add(mutant.key)
            yield mutant
