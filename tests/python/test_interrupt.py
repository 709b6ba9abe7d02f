"""Ctrl-C: noticed soon, nothing written afterwards, the device usable."""

from __future__ import annotations

import signal
import time

import pytest

import child

# A shell starts background commands with SIGINT ignored, and children inherit that.
CPU_SECONDS = """
import signal
import numpy as np, metal_sdpa
signal.signal(signal.SIGINT, signal.default_int_handler)
rng = np.random.default_rng(0)
q = rng.standard_normal((1, 16, 8192, 128), np.float32)
k = rng.standard_normal((1, 16, 8192, 128), np.float32)
"""


def interrupt(program: str) -> tuple[str, float]:
    """Runs `program`, interrupts it 0.3 s after it says it begins; its last line and the delay."""
    process = child.start(program)
    assert process.stdout is not None
    assert process.stdout.readline() == "begin\n", process.communicate()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    sent = time.time()
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    caught, rest = out.split(maxsplit=1)
    return rest, float(caught) - sent


@pytest.mark.parametrize(
    "call",
    [
        "metal_sdpa.sdpa(q, k, k, out=out)",
        "encoder.commit_and_wait()",
        "(encoder.commit(), encoder.wait_until_completed())",
        "(encoder.commit(), device.synchronize())",
    ],
    ids=["sdpa", "commit_and_wait", "wait_until_completed", "synchronize"],
)
def test_ctrl_c_stops_the_work(call: str) -> None:
    """KeyboardInterrupt within 50 ms; nothing is written afterwards; the device works on."""
    rest, delay = interrupt(
        CPU_SECONDS
        + f"""
import time
device = metal_sdpa.Device("cpu")
registry = metal_sdpa.KernelRegistry(device)
params = metal_sdpa.SdpaParams(16, 16, 128, 8192, 8192, 0.088, 0, False)
output = device.empty(q.shape, metal_sdpa.DType.f32)
encoder = device.command_encoder()
metal_sdpa.encode_sdpa(
    encoder, registry, device, device.wrap(q), device.wrap(k), device.wrap(k), output, params, 1)
out = np.zeros_like(q)
print("begin", flush=True)
try:
    {call}
    print("not interrupted")
except KeyboardInterrupt:
    caught = time.time()
    result = output.numpy() if out.max() == 0 else out
    before = result.copy()
    time.sleep(0.3)
    unchanged = np.array_equal(before, result)
    finished = bool(before[:, :, -1].any(axis=-1).all())
    small = q[:, :1, :4]
    want = metal_sdpa.sdpa(small, small, small)
    works = bool(np.isfinite(want).all())
    device.synchronize()
    print(caught, "unchanged" if unchanged else "written later",
          "finished" if finished else "stopped", "works" if works else "broken")
"""
    )
    assert rest.split() == ["unchanged", "stopped", "works"]
    # 50 ms are promised; the signal and a loaded machine's scheduler have their share on top.
    assert delay < 0.05 + 0.2, f"{delay * 1000:.0f} ms"


def test_ctrl_c_is_noticed_within_50_ms_as_a_rule() -> None:
    """The best of three: a busy machine may delay one of them."""
    program = (
        CPU_SECONDS
        + """
import time
print("begin", flush=True)
try:
    metal_sdpa.sdpa(q, k, k)
    print("not interrupted")
except KeyboardInterrupt:
    print(time.time(), "stopped")
"""
    )
    delays = []
    for _ in range(3):
        rest, delay = interrupt(program)
        assert rest.split() == ["stopped"]
        delays.append(delay)
        if delay < 0.05:
            return
    pytest.fail(f"{[f'{delay * 1000:.0f} ms' for delay in delays]}")


def test_the_callers_own_signal_handler_may_raise_what_it_likes() -> None:
    rest, _ = interrupt(
        CPU_SECONDS
        + """
import signal, time
class Stop(Exception): pass
def handler(signum, frame): raise Stop
signal.signal(signal.SIGINT, handler)
print("begin", flush=True)
try:
    metal_sdpa.sdpa(q, k, k)
    print("not interrupted")
except Stop:
    print(time.time(), "stopped")
"""
    )
    assert rest.split() == ["stopped"]
