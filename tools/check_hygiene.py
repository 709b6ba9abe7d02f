"""Checks what the project's files hold: ASCII text only, no path of one machine, no registry host.

Exit status 1 with one line a finding: FILE:LINE: what it is.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from project_files import ROOT, project_files

# Formats that are not text; everything else is read.
BINARY_SUFFIXES = {".safetensors", ".png", ".npz", ".gz"}

# In pieces, which are joined as they stand: this file may not name a host either.
REGISTRY_HOSTS = (
    ("pypi", ".", "org"),
    ("python", "hosted", "."),
    ("deb", ".", "debian", ".", "org"),
    ("registry", ".", "npmjs"),
)

FORBIDDEN = {
    "a path of one machine": re.compile(
        r"(?<![\w.$}/-])/(?:work|farm|root|home/\w+|Users/\w+|tmp/team)/"
    ),
    "a package registry's host": re.compile(
        "|".join(re.escape("".join(pieces)) for pieces in REGISTRY_HOSTS), re.IGNORECASE
    ),
    "text that is not ASCII": re.compile(r"[^\x00-\x7f]"),
}


def findings(path: Path) -> list[str]:
    """One line for each forbidden thing in a file."""
    text = (ROOT / path).read_text(encoding="utf-8", errors="replace")
    return [
        f"{path}:{number}: {what}: {line.strip()[:80]}"
        for number, line in enumerate(text.splitlines(), start=1)
        for what, pattern in FORBIDDEN.items()
        if pattern.search(line)
    ]


def main() -> int:
    paths = [path for path in project_files() if path.suffix not in BINARY_SUFFIXES]
    found = [line for path in paths for line in findings(path)]
    print("\n".join(found).encode("ascii", "backslashreplace").decode(), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
