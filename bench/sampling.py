"""Takes one timing sample of a bound call, undisturbed by the library measured before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from .peers import Peer

MIN_SAMPLE = 0.002  # seconds: shorter calls are repeated, and the sample is their mean
WARM_UP_BELOW = 0.05  # seconds: a shorter call runs once untimed first, which wakes its threads
SETTLE_STEP = 0.001
SETTLE_LIMIT = 0.08
BUSY = 0.3  # of one core

clock = time.perf_counter


def settle() -> None:
    """Waits until the threads of this process sleep: the pools of PyTorch and ONNX Runtime spin for
    8 and 40 ms after a call, on cores that the next library needs."""
    deadline = clock() + SETTLE_LIMIT
    while clock() < deadline:
        wall, busy = clock(), time.process_time()
        time.sleep(SETTLE_STEP)
        if time.process_time() - busy < BUSY * (clock() - wall):
            return


class Rotation:
    """Hands out the calls of the caches in turn, over all libraries together: a cache comes back
    only after every other one was read."""

    def __init__(self, caches: int) -> None:
        self._caches = caches
        self._next = 0

    def step(self) -> int:
        cache = self._next
        self._next = (cache + 1) % self._caches
        return cache


def first_call_seconds(call: Callable[[], object]) -> float:
    start = clock()
    call()
    return clock() - start


def sample(
    calls: Sequence[Callable[[], object]], rotation: Rotation, expected: float, peer: Peer
) -> float:
    """Seconds a call. `expected` is a rough time of one, which decides how many are timed."""
    repeats = int(MIN_SAMPLE / expected) + 1
    settle()
    with peer.awake():
        if expected < WARM_UP_BELOW:
            calls[rotation.step()]()
        turn = [calls[rotation.step()] for _ in range(repeats)]
        start = clock()
        for call in turn:
            call()
        return (clock() - start) / repeats
