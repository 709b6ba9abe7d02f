"""What the tests run on, and the seed of everything random."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from targets import Target, selected_targets, sweep_seed


def pytest_report_header() -> list[str]:
    names = " ".join(map(str, selected_targets()))
    count = os.environ.get("METAL_SDPA_SWEEP", "2000")
    return [f"METAL_SDPA_SEED={sweep_seed()} METAL_SDPA_SWEEP={count} targets: {names}"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`target`: every device and instruction set under test; `device_kind`: every device."""
    if "target" in metafunc.fixturenames:
        metafunc.parametrize("target", selected_targets(), ids=str)
    if "device_kind" in metafunc.fixturenames:
        kinds = dict.fromkeys(target.kind for target in selected_targets())
        metafunc.parametrize("device_kind", list(kinds))


@pytest.fixture
def device(target: Target):
    """The device under test."""
    return target.device()
