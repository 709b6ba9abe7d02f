"""The scripts of tools/ run what they built, whatever lies on the caller's import path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [ROOT / ".ci" / "run", *sorted((ROOT / "tools").glob("*.sh"))]
# A compiler and an archiver, started by CMake in a script's own environment, and what they source.
PARTS = {"common.sh", "zig_ar.sh", "zig_macos_cxx.sh"}

FIND = """
import importlib.util, sys
spec = importlib.util.find_spec("metal_sdpa")
print(spec and spec.origin)
"""


def test_a_module_of_the_callers_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "metal_sdpa.py").write_text("raise SystemExit('not this one')")
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('nor this one')")
    script = f"source tools/common.sh; \"$PYTHON\" -c '{FIND}'"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "METAL_SDPA_VENV": sys.prefix}
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(tmp_path) not in done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_that_runs_python_does_so(script: Path) -> None:
    text = script.read_text()
    if "PYTHON" in text and script.name not in PARTS:
        assert "/common.sh" in text
