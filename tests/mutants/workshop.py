"""A copy of the tree, its build, and commands that run there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
# An emulated device has no clock to speak of: the shaders are compiled without optimisation.
TEST_ENVIRONMENT = {
    "METAL_SDPA_TEST_DEVICES": "cpu,metal",
    "SOFTWARE_METAL_OPTIMIZATION": "-O0",
    "SOFTWARE_METAL_LEAKS": "fatal",
}


class BuildError(Exception):
    """What does not build, with the end of what the compiler said."""


def project_files() -> list[Path]:
    """The project's files; all of them where the tree is no repository of git's."""
    sys.path.insert(0, str(TREE / "tools"))
    from project_files import project_files as files_of_git

    try:
        return files_of_git()
    except (OSError, subprocess.CalledProcessError):
        skipped = {"build", ".git", ".venv", ".cache", "__pycache__"}
        paths = [path.relative_to(TREE) for path in TREE.rglob("*") if path.is_file()]
        return [path for path in paths if not skipped & set(path.parts)]


def run(
    command: Sequence[str], seconds: float, environment: Mapping[str, str], directory: Path
) -> int | None:
    """The exit status; None where it took longer. Nothing that it started is left."""
    process = subprocess.Popen(
        command,
        env=dict(environment),
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Workshop:
    """A copy of the sources and its build of a preset; `jobs` compilers at once."""

    def __init__(
        self,
        directory: Path,
        jobs: int,
        python: bool = False,
        preset: str = "software-metal",
        isas: str = "runnable",
    ) -> None:
        self.tree = directory / "tree"
        self.build = directory / "build"
        self.jobs = jobs
        self.python = python
        self.preset = preset
        self.isas = isas

    def refresh(self) -> None:
        """Copies what differs from the tree, so that an old build is used as far as it holds."""
        wanted = project_files()
        for path in wanted:
            copy = self.tree / path
            content = (TREE / path).read_bytes()
            if copy.is_file() and copy.read_bytes() == content:
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
            copy.chmod((TREE / path).stat().st_mode)
        for copy in list(self.tree.rglob("*")):
            own = copy.relative_to(self.tree)
            if copy.is_file() and own not in set(wanted) and "__pycache__" not in own.parts:
                copy.unlink()

    def configure(self) -> None:
        """Configures the build; headers and their cache are those of the tree.

        Warnings are off: an unused variable is no reason for a fault not to be tried.
        """
        command = ["cmake", "--preset", self.preset, "-S", str(self.tree), "-B"]
        command += [str(self.build), "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1 -w"]
        command += [f"-DMETAL_SDPA_ISAS={self.isas}"]
        command += [f"-DMETAL_SDPA_CACHE_DIR={TREE / '.cache'}"]
        command += [f"-DMETAL_SDPA_PYTHON={'ON' if self.python else 'OFF'}"]
        command += [f"-DPython_EXECUTABLE={sys.executable}"]
        if "METAL_CPP_DIR" in os.environ:
            command.append(f"-DMETAL_CPP_DIR={os.environ['METAL_CPP_DIR']}")
        self._checked(command, "configure")

    def make(self, targets: Sequence[str] = ("all",), jobs: int = 0) -> None:
        """Builds targets."""
        command = ["cmake", "--build", str(self.build), "-j", str(jobs or self.jobs)]
        self._checked([*command, "--target", *targets], "build")

    def program(self, name: str) -> Path:
        """A C++ test program."""
        return self.build / "tests" / "cpp" / name

    def case_passes(self, program: str, case: str, seconds: float) -> bool:
        """Whether one test passes; a crash or a hang is no pass."""
        if program.endswith(".py"):
            return self.run_pytest([f"tests/python/{program}::{case}"], seconds, {}) == 0
        pattern = case.replace(",", "?")  # doctest takes commas for a list of patterns
        command = [str(self.program(program)), f"--test-case={pattern}", "--minimal"]
        return run(command, seconds, {**os.environ, **TEST_ENVIRONMENT}, self.tree) == 0

    def run_program(self, name: str, seconds: float, devices: str) -> bool:
        """Whether all cases of a C++ program pass on these devices."""
        environment = {**os.environ, **TEST_ENVIRONMENT, "METAL_SDPA_TEST_DEVICES": devices}
        return run([str(self.program(name)), "--minimal"], seconds, environment, self.tree) == 0

    def has_case(self, program: str, case: str) -> bool:
        """Whether there is exactly this test."""
        if program.endswith(".py"):
            text = (self.tree / "tests" / "python" / program).read_text(encoding="utf-8")
            return f"def {case}(" in text
        command = [str(self.program(program)), "--list-test-cases"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return result.stdout.splitlines().count(case) == 1

    def run_pytest(
        self, arguments: Sequence[str], seconds: float, environment: Mapping[str, str]
    ) -> int | None:
        """pytest on what was staged, up to its first failure."""
        full = {
            **os.environ,
            "METAL_SDPA_TEST_DEVICES": "cpu",
            "METAL_SDPA_SWEEP": "200",
            "METAL_SDPA_VENV": sys.prefix,
            **environment,
            "PYTHONPATH": os.pathsep.join(
                [str(self.build / "stage"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
            ).rstrip(os.pathsep),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        return run([*command, *arguments], seconds, full, self.tree)

    @staticmethod
    def _checked(command: Sequence[str], what: str) -> None:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            output = result.stdout[-4000:] + result.stderr[-4000:]
            raise BuildError(f"{what} failed:\n{output}")
