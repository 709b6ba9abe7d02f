"""Builds the sdist and checks that pip and CMake take it: metadata, sources, a configured build.

Run with an interpreter that has the dependency group `build`; cmake must be on the path. Nothing is
compiled: a file that is missing is missed when pip reads the metadata, when CMake configures, or by
name, since CMake takes whatever sources there are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What the wheel is made of, and what a person looks for; each folder whole.
FOLDERS = (
    "bench",
    "cmake",
    "csrc",
    "docs/engines",
    "examples",
    "python",
    "shaders",
    "tests",
    "tools",
)
FILES = (
    "CHANGELOG.md",
    "CMakeLists.txt",
    "CMakePresets.json",
    "LICENSE",
    "Makefile",
    "README.md",
    "pyproject.toml",
)

BUILD = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"


def run(command: list[str | Path], cwd: Path) -> str:
    """Runs a command that must succeed; returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def tracked_files() -> set[str]:
    """Files that belong into the sdist, as git knows them."""
    listing = run(["git", "ls-files", "-z", "--", *FOLDERS, *FILES], ROOT)
    return {name for name in listing.split("\0") if name and (ROOT / name).is_file()}


def check_contents(tree: Path) -> None:
    held = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    missing = sorted(tracked_files() - held)
    if missing:
        sys.exit("sdist: it lacks " + ", ".join(missing))
    print(f"sdist: holds all {len(tracked_files())} files")


def check_pip_takes(archive: Path, directory: Path) -> None:
    """pip reads the metadata, through the build backend, without a build."""
    options = ["--dry-run", "--quiet", "--no-deps", "--no-build-isolation", "--ignore-installed"]
    run([sys.executable, "-m", "pip", "install", *options, archive], directory)
    print("sdist: pip takes it")


def check_cmake_configures(tree: Path, build: Path) -> None:
    run(["cmake", "-S", tree, "-B", build, f"-DPython_EXECUTABLE={sys.executable}"], build.parent)
    print("sdist: CMake configures it")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        run([sys.executable, "-c", BUILD, directory], ROOT)
        (archive,) = directory.glob("metal_sdpa-*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(directory / "tree", filter="data")
        (tree,) = (directory / "tree").iterdir()
        check_contents(tree)
        check_pip_takes(archive, directory)
        check_cmake_configures(tree, directory / "build")


if __name__ == "__main__":
    main()
