"""Reports lines of code by area and the files past 600 lines. A report: it never fails a build."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from project_files import CPP_SUFFIXES, PYTHON_SUFFIXES, ROOT, project_files

SUFFIXES = CPP_SUFFIXES | PYTHON_SUFFIXES | {".cmake", ".sh"}
LONG_FILE = 600


def line_counts() -> dict[Path, int]:
    """Lines of every source file of the project."""
    paths = [path for path in project_files() if path.suffix in SUFFIXES]
    return {path: len((ROOT / path).read_bytes().splitlines()) for path in paths}


def area(path: Path) -> str:
    """csrc/core, tests/python, shaders, ...: two levels where the first is csrc or tests."""
    depth = 2 if path.parts[0] in {"csrc", "tests"} else 1
    return "/".join(path.parts[:-1][:depth]) or "."


def main() -> None:
    counts = line_counts()
    areas: dict[str, list[int]] = defaultdict(list)
    for path, lines in counts.items():
        areas[area(path)].append(lines)
    print(f"{'area':<20}{'files':>7}{'lines':>8}{'longest':>9}")
    for name, lines_of in sorted(areas.items()):
        print(f"{name:<20}{len(lines_of):>7}{sum(lines_of):>8}{max(lines_of):>9}")
    print(f"{'total':<20}{len(counts):>7}{sum(counts.values()):>8}")
    for path, lines in sorted(counts.items(), key=lambda item: -item[1]):
        if lines > LONG_FILE:
            print(f"past {LONG_FILE} lines: {path} ({lines})")


if __name__ == "__main__":
    main()
