"""The project's files as git sees them. `project_files.py cpp|python`: those of one formatter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CPP_SUFFIXES = {".c", ".cpp", ".h", ".hpp", ".cuh", ".metal"}
PYTHON_SUFFIXES = {".py", ".pyi"}

# Other people's interfaces, laid out as they publish them.
NOT_OURS_TO_FORMAT = Path("tests/metal/stubs")


def project_files() -> list[Path]:
    """Files that git tracks, and new ones that it does not ignore, relative to the root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = [Path(name) for name in listing.split("\0") if name]
    return [path for path in paths if (ROOT / path).is_file()]


def main() -> None:
    suffixes = {"cpp": CPP_SUFFIXES, "python": PYTHON_SUFFIXES}[sys.argv[1]]
    for path in project_files():
        if path.suffix in suffixes and NOT_OURS_TO_FORMAT not in path.parents:
            print(path)


if __name__ == "__main__":
    main()
