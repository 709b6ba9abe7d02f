"""fork(): the CPU device works in the child, what was being encoded does not."""

from __future__ import annotations

import os

import pytest

import child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
def test_fork() -> None:
    """The CPU device works in the child; encoders and graphs from before raise there."""
    out = child.run(
        """
import os, sys, warnings
import numpy as np, metal_sdpa
warnings.simplefilter("ignore", DeprecationWarning)  # fork() with threads: what is tested here
from engine import Arena, Attention
from metal_sdpa import SdpaParams
rng = np.random.default_rng(0)
q = rng.standard_normal((2, 4, 200, 64), np.float32)
want = metal_sdpa.sdpa(q, q, q)
device = metal_sdpa.Device("cpu", threads=2)
arena = Arena.of(device)
attention = Attention.of(device, SdpaParams(2, 1, 16, 3, 20))
encoder = device.command_encoder()
recorder = device.command_encoder()
recorder.begin_capture()
attention.encode(recorder)
graph = recorder.end_capture()
busy = device.command_encoder()  # committed and perhaps running while we fork
attention.encode(busy)
busy.commit()

def refused(call):
    try:
        call()
    except metal_sdpa.Error as error:
        return "fork" in str(error)
    return False

def in_child():
    checks = [
        refused(lambda: arena.encode_mean(encoder, 1, 1, 2)),
        refused(lambda: encoder.commit()),
        refused(lambda: encoder.commit_and_wait()),
        refused(lambda: busy.wait_until_completed()),
        refused(lambda: graph.replay(device.command_encoder())),
        refused(lambda: graph.reorder()),
        np.array_equal(metal_sdpa.sdpa(q, q, q), want),
        np.array_equal(metal_sdpa.sdpa(q, q, q, device=device), want),
    ]
    fresh = device.command_encoder()
    attention.encode(fresh)
    fresh.commit()
    device.synchronize()
    return checks

for _ in range(3):
    pid = os.fork()
    if pid == 0:
        try:
            checks = in_child()
        except BaseException as error:
            print("child", repr(error), flush=True)
            os._exit(2)
        if not all(checks):
            print("child", checks, flush=True)
        os._exit(0 if all(checks) else 1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
busy.wait_until_completed()
assert np.array_equal(metal_sdpa.sdpa(q, q, q), want)
print("fine")
"""
    )
    assert out.split() == ["fine"], out
