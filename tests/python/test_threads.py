"""Concurrent calls: no deadlock, the right bits, the GIL released while computing."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import child
import metal_sdpa
from arrays import same_bits
from engine import Attention
from metal_sdpa import Device, SdpaParams
from problems import Limits, random_problem
from targets import Target


def test_many_threads_get_the_bits_of_one(target: Target) -> None:
    limits = Limits(128, 300, 200_000, 60_000) if target.kind == "cpu" else target.limits
    problems = [random_problem(5, index, limits) for index in range(24)]
    devices = [target.device(threads=n) for n in (1, 2, 3)]

    def run(n: int) -> np.ndarray:
        problem = problems[n % len(problems)]
        return metal_sdpa.sdpa(
            *problem.arrays(), **problem.arguments(), device=devices[n % len(devices)]
        )

    want = [run(n) for n in range(len(problems))]
    repeats = 10 if target.kind == "cpu" else 2
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(run, range(len(problems) * repeats), timeout=120))
    for n, result in enumerate(results):
        assert same_bits(result, want[n % len(problems)]), problems[n % len(problems)]


def test_sdpa_asynchronous_work_and_synchronize_at_once(target: Target) -> None:
    device = target.device()
    params = SdpaParams(4, 2, 32, 9, 40, 0.2, 0, True)
    want = Attention.of(device, params).direct(params)
    repeats = 30 if target.kind == "cpu" else 4

    def asynchronous() -> None:
        attention = Attention.of(device, params)
        for _ in range(repeats):
            attention.poison_output()
            encoder = device.command_encoder()
            attention.encode(encoder)
            encoder.commit()
            encoder.wait_until_completed()
            assert np.array_equal(attention.result(), want)

    def synchronous() -> None:
        attention = Attention.of(device, params)
        for _ in range(repeats):
            out = metal_sdpa.sdpa(
                attention.q.numpy(),
                attention.k.numpy(),
                attention.v.numpy(),
                causal=True,
                scale=0.2,
                device=device,
            )
            assert np.array_equal(out.view(np.uint32), want)

    def synchronizing() -> None:
        for _ in range(repeats):
            device.synchronize()

    def replaying() -> None:
        attention = Attention.of(device, params)
        recorder = device.command_encoder()
        recorder.begin_capture()
        attention.encode(recorder)
        graph = recorder.end_capture()
        for _ in range(repeats):
            encoder = device.command_encoder()
            graph.replay(encoder)
            encoder.commit_and_wait()
            assert np.array_equal(attention.result(), want)

    with ThreadPoolExecutor(8) as pool:
        work = [asynchronous, synchronous, synchronizing, replaying] * 2
        for future in [pool.submit(job) for job in work]:
            future.result(timeout=120)


def test_one_graph_replayed_from_many_threads(target: Target) -> None:
    device = target.device()
    params = SdpaParams(4, 2, 32, 1, 40, 0.2, 0, True)
    attention = Attention.of(device, params)
    want = attention.direct(params)
    recorder = device.command_encoder()
    recorder.begin_capture()
    attention.encode(recorder)
    graph = recorder.end_capture()

    def replay(_: int) -> None:
        encoder = device.command_encoder()
        graph.replay(encoder)
        encoder.commit()
        encoder.wait_until_completed()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(replay, range(60 if target.kind == "cpu" else 6), timeout=120))
    assert np.array_equal(attention.result(), want)


def longest_gap(work: Callable[[], object]) -> tuple[float, float]:
    """The longest that another Python thread stood still while `work` ran, and how long it ran."""
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    ticker = threading.Thread(target=tick)
    ticker.start()
    time.sleep(0.02)
    began = time.perf_counter()
    work()
    ended = time.perf_counter()
    stop.set()
    ticker.join()
    during = [began, *(t for t in ticks if began < t < ended), ended]
    return float(np.max(np.diff(during))), ended - began


def long_call(way: str) -> Callable[[], object]:
    """Some tenths of a second of work on one thread, begun in one way or another."""
    device = Device("cpu", threads=1)
    attention = Attention.of(device, SdpaParams(8, 8, 64, 1500, 1500, 0.1, 0, False))
    encoder = device.command_encoder()
    if way == "sdpa":
        q, k, v = (buffer.numpy() for buffer in (attention.q, attention.k, attention.v))
        return lambda: [metal_sdpa.sdpa(q, k, v, device=device, causal=False) for _ in range(2)]
    for _ in range(2):
        attention.encode(encoder)
    if way == "commit_and_wait":
        return encoder.commit_and_wait
    if way == "wait_until_completed":
        return lambda: (encoder.commit(), encoder.wait_until_completed())
    if way == "synchronize":
        return lambda: (encoder.commit(), device.synchronize())
    return lambda: (encoder.commit(), metal_sdpa.shutdown())


@pytest.mark.alone
@pytest.mark.parametrize(
    "way", ["sdpa", "commit_and_wait", "wait_until_completed", "synchronize", "shutdown"]
)
def test_python_runs_while_attention_computes(way: str) -> None:
    """The GIL is released all the while, not only most of it."""
    gaps = []
    for _ in range(5):  # a busy machine may hold up any of them
        gap, length = longest_gap(long_call(way))
        assert length > 0.02
        gaps.append(gap / length)
        if gap < length / 4:
            return
    pytest.fail(f"another thread stood still for {[f'{gap:.0%}' for gap in gaps]} of the call")


@pytest.mark.parametrize("wait", ["device.synchronize()", "metal_sdpa.shutdown()"])
def test_waiting_for_the_device_beside_callers(wait: str, target: Target) -> None:
    """It ends while other threads keep calling."""
    out = child.run(
        f"""
import faulthandler, threading
import numpy as np, metal_sdpa
faulthandler.dump_traceback_later(100, exit=True)
device = metal_sdpa.Device("{target.kind}")
x = np.ones((1, 4, 256, 32), np.float32)
metal_sdpa.sdpa(x, x, x, device=device)
stop, failed = threading.Event(), []

def call():
    try:
        while not stop.is_set():
            metal_sdpa.sdpa(x, x, x, device=device)
    except BaseException as error:
        failed.append(error)

callers = [threading.Thread(target=call) for _ in range(3)]
for caller in callers:
    caller.start()
for _ in range(5):
    {wait}
stop.set()
for caller in callers:
    caller.join()
print("failed" if failed else "fine")
""",
        timeout=110,
    )
    assert out.split() == ["fine"]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_system_that_gives_no_threads() -> None:
    """The calling thread computes; what was committed is run by whoever waits."""
    out = child.run(
        """
import faulthandler, os, resource, threading
import numpy as np, metal_sdpa
faulthandler.dump_traceback_later(60, exit=True)
from engine import Attention
x = np.random.default_rng(0).standard_normal((1, 8, 400, 64), np.float32)
want = metal_sdpa.sdpa(x, x, x)
device = metal_sdpa.Device("cpu", threads=4)
params = metal_sdpa.SdpaParams(4, 2, 32, 9, 40, 0.2, 0, True)
attention = Attention.of(device, params)
want_encoded = attention.direct(params)
metal_sdpa.shutdown()
if os.getuid() == 0:
    os.setuid(65533)  # root has no such limit
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    threading.Thread(target=print).start()
    print("there are threads")
except RuntimeError:
    pass
assert np.array_equal(metal_sdpa.sdpa(x, x, x, device=device), want)
for wait in ("encoder.wait_until_completed()", "device.synchronize()",
             "metal_sdpa.sdpa(x, x, x, device=device)", "metal_sdpa.shutdown()"):
    attention.poison_output()
    encoder = device.command_encoder()
    attention.encode(encoder)
    encoder.commit()
    exec(wait)
    assert np.array_equal(attention.result(), want_encoded), wait
print("fine")
"""
    )
    assert out.split() == ["fine"]


@pytest.mark.parametrize("count", [0, -1, 1025, 2**40, "two", 1.5, None])
def test_bad_thread_counts(count: object) -> None:
    before = metal_sdpa.get_num_threads()
    with pytest.raises(metal_sdpa.Error, match="set_num_threads: n_threads"):
        metal_sdpa.set_num_threads(count)
    if count not in (None, 0):
        with pytest.raises(metal_sdpa.Error, match="Device: threads"):
            Device("cpu", threads=count)
    assert metal_sdpa.get_num_threads() == before
