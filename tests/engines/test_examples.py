"""examples/complete_transformers.py: the same text by either attention."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "complete_transformers.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_attentions_give_the_same_text(dtype: str) -> None:
    done = run("--tokens", "40", "--repeats", "1", "--dtype", dtype)
    assert done.returncode == 0, done.stderr
    assert "class TableWriter" in done.stdout
    assert done.stdout.count("tokens/s") == 2
    if dtype == "float32":
        assert "\nthe same tokens\n" in done.stdout


def test_a_prompt_that_is_too_long() -> None:
    done = run("--prompt", "x = 1\n" * 900)
    assert done.returncode == 2
    assert "tokens together" in done.stderr
