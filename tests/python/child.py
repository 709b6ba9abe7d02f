"""Python programs in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).parent
# tools/sanitize.sh preloads it: freed memory stays resident, and code runs several times slower.
UNDER_ASAN = "libasan" in os.environ.get("LD_PRELOAD", "")


def start(program: str, **environment: str) -> subprocess.Popen[str]:
    """Starts `program` with the test helpers on its path."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path} | environment,
    )


def run(program: str, timeout: float = 120, **environment: str) -> str:
    """Standard output of `program`, which must end well and say nothing on standard error."""
    process = start(program, **environment)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {timeout} s\n{out}\n{err}") from None
    assert process.returncode == 0, f"exit status {process.returncode}\n{out}\n{err}"
    assert err == "", err
    return out
