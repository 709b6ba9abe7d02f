"""Uses the installed wheel as its three kinds of user do, from an empty directory.

1. Every ```python block of README.md runs as a program of its own.
2. A C++ project finds the package with find_package; it holds consumer.cpp and the README's ```cpp
   block, which must print what the comment on its last line says.
3. The library, the package and the CMake package agree on the version.

Run with the interpreter that has the wheel; cmake must be on the path.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
README = HERE.parent.parent / "README.md"

# From the README's ```cpp block: `std::printf(...);  // prints TEXT`.
PRINTS = re.compile(r"// prints (.+)$", re.MULTILINE)


def blocks(language: str) -> list[str]:
    """The fenced blocks of README.md in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def run(command: list[str | Path], cwd: Path) -> str:
    """Runs a command that must succeed; returns what it printed."""
    # The wheel is under test, not a build tree that the caller may have put on the path.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def check_python_blocks(directory: Path) -> None:
    sources = blocks("python")
    assert sources, "README.md has no python block"
    for number, source in enumerate(sources, start=1):
        path = directory / f"readme_{number}.py"
        path.write_text(source)
        run([sys.executable, "-W", "error", path], directory)
    print(f"README: {len(sources)} python blocks ran")


def check_cpp_consumer(directory: Path) -> None:
    (example,) = blocks("cpp")
    (expected,) = PRINTS.findall(example)
    source = directory / "readme_example.cpp"
    source.write_text(example)
    package = run([sys.executable, "-m", "metal_sdpa", "--cmakedir"], directory).strip()
    build = directory / "build"
    settings = [f"-Dmetal_sdpa_ROOT={package}", f"-DREADME_EXAMPLE={source}"]
    run(["cmake", "-G", "Ninja", "-S", HERE, "-B", build, *settings], directory)
    run(["cmake", "--build", build], directory)
    print(run([build / "consumer"], directory).strip())
    printed = run([build / "readme_example"], directory).strip()
    assert printed == expected, f"README: the cpp block printed {printed!r}, not {expected!r}"
    print(f"README: the cpp block printed {printed!r}")


def check_versions(directory: Path) -> None:
    versions = run(
        [
            sys.executable,
            "-c",
            "import importlib.metadata, metal_sdpa;"
            "print(metal_sdpa.__version__, importlib.metadata.version('metal-sdpa'))",
        ],
        directory,
    ).split()
    header = Path(run([sys.executable, "-m", "metal_sdpa", "--includedir"], directory).strip())
    text = (header / "metal_sdpa" / "version.h").read_text()
    versions += re.findall(r'#define METAL_SDPA_VERSION "(.+)"', text)
    assert versions == versions[:1] * 3, f"versions differ: {versions}"
    print(f"version {versions[0]} everywhere")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        check_versions(directory)
        check_python_blocks(directory)
        check_cpp_consumer(directory)


if __name__ == "__main__":
    main()
