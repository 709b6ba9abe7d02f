"""The interpreter ends with work in flight."""

from __future__ import annotations

import pytest

import child


@pytest.mark.parametrize("way", ["fall off the end", "sys.exit(0)", "keep everything"])
def test_exit_joins_work_in_flight(way: str) -> None:
    """The interpreter ends while the queue is full: no crash, no hang."""
    out = child.run(
        f"""
import sys
import numpy as np, metal_sdpa
from engine import Attention
from metal_sdpa import SdpaParams
device = metal_sdpa.Device("cpu", threads=2)
attention = Attention.of(device, SdpaParams(8, 2, 64, 128, 1000))
kept = []
for _ in range(10):
    encoder = device.command_encoder()
    attention.encode(encoder)
    encoder.commit()
    kept.append(encoder)
print("committed", flush=True)
if "{way}" == "keep everything":
    sys.modules["kept"] = (kept, device, attention)
else:
    kept.clear()
if "exit" in "{way}":
    sys.exit(0)
"""
    )
    assert out.split() == ["committed"]


def test_exit_while_threads_are_calling() -> None:
    """Daemon threads are still inside sdpa when the interpreter goes away."""
    out = child.run(
        """
import threading, time
import numpy as np, metal_sdpa
q = np.ones((1, 8, 300, 64), np.float32)
def work():
    while True:
        metal_sdpa.sdpa(q, q, q)
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
print("done", flush=True)
"""
    )
    assert out.split() == ["done"]
