"""Ctrl-C: noticed soon, nothing written afterwards, the device usable."""

from __future__ import annotations

import signal
import time

import pytest

import child

pytestmark = pytest.mark.alone

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


HANDLED = {
    "sdpa": "assert np.array_equal(metal_sdpa.sdpa(small, small, small), want_small)",
    "commit_and_wait": "encode(device.command_encoder()).commit_and_wait()",
    "commit and wait": "e = encode(device.command_encoder()); e.commit(); e.wait_until_completed()",
    "synchronize": "device.synchronize()",
    "shutdown": "metal_sdpa.shutdown()",
}
OUTER = {
    "sdpa": "got = metal_sdpa.sdpa(q, q, q)",
    "commit_and_wait": "encode_large().commit_and_wait(); got = large.numpy()",
}


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("handled", HANDLED)
def test_a_signal_handler_may_call_the_library(handled: str, outer: str) -> None:
    """In the middle of a call it works, or is refused where it would wait for that very call."""
    refused = handled == "shutdown" or (outer == "commit_and_wait" and handled != "sdpa")
    program = """
import faulthandler, signal
import numpy as np, metal_sdpa
faulthandler.dump_traceback_later(60, exit=True)
rng = np.random.default_rng(0)
q = rng.standard_normal((1, 16, 3000, 128), np.float32)
small = rng.standard_normal((1, 2, 70, 16), np.float32)
want, want_small = metal_sdpa.sdpa(q, q, q), metal_sdpa.sdpa(small, small, small)
device = metal_sdpa.Device("cpu")
registry = metal_sdpa.KernelRegistry(device)
held, output = device.wrap(small), device.empty(small.shape, "f32")
wrapped, large = device.wrap(q), device.empty(q.shape, "f32")

def encode(encoder):
    params = metal_sdpa.SdpaParams(2, 2, 16, 70, 70, 0.25, 0, False)
    metal_sdpa.encode_sdpa(encoder, registry, device, held, held, held, output, params, 1)
    return encoder

def encode_large():
    encoder = device.command_encoder()
    params = metal_sdpa.SdpaParams(16, 16, 128, 3000, 3000, 128**-0.5, 0, False)
    metal_sdpa.encode_sdpa(
        encoder, registry, device, wrapped, wrapped, wrapped, large, params, 1)
    return encoder

handled = []
def handler(*_):
    try:
        HANDLED
        handled.append("worked")
    except metal_sdpa.InvalidArgument as error:
        assert "signal handler" in str(error), error
        handled.append("refused")

signal.signal(signal.SIGALRM, handler)
for _ in range(50):
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    OUTER
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert np.array_equal(got, want)
    if handled:
        break
device.synchronize()
assert np.array_equal(metal_sdpa.sdpa(q, q, q), want)
print(*handled)
"""
    program = program.replace("HANDLED", HANDLED[handled]).replace("OUTER", OUTER[outer])
    out = child.run(program)
    assert out.split() == ["refused" if refused else "worked"]


def test_ctrl_c_in_synchronize_leaves_other_threads_alone() -> None:
    rest, _ = interrupt(
        CPU_SECONDS
        + """
import faulthandler, threading, time
faulthandler.dump_traceback_later(60, exit=True)
device = metal_sdpa.Device("cpu")
registry = metal_sdpa.KernelRegistry(device)
held = device.wrap(q)
errors, finished = [], []

def work():
    params = metal_sdpa.SdpaParams(16, 16, 128, 8192, 8192, 0.088, 0, False)
    output = device.empty(q.shape, "f32")
    encoder = device.command_encoder()
    metal_sdpa.encode_sdpa(encoder, registry, device, held, held, held, output, params, 1)
    encoder.commit()
    committed.set()
    try:
        encoder.wait_until_completed()
        finished.append(bool(output.numpy()[:, :, -1].any(axis=-1).all()))
    except BaseException as error:
        errors.append(error)

committed = threading.Event()
thread = threading.Thread(target=work)
thread.start()
committed.wait()
print("begin", flush=True)
caught = "0"
try:
    device.synchronize()
except KeyboardInterrupt:
    caught = time.time()
thread.join()
print(caught, len(errors), *finished)
"""
    )
    assert rest.split() == ["0", "True"]
