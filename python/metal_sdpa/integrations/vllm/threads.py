"""Threads where vLLM wants them.

vLLM binds each OpenMP thread of a worker process to a processor of its own, the first of them being
the process's main thread: what that thread starts would share its one processor.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator

import numpy as np

from metal_sdpa import sdpa, set_num_threads

# As vLLM writes them, one for each OpenMP library.
_BINDINGS = {
    "GOMP_CPU_AFFINITY": re.compile(r"^([\d ]+)$"),
    "KMP_AFFINITY": re.compile(r"proclist=\[([\d,]+)\]"),
    "OMP_PLACES": re.compile(r"^\{([\d,]+)\}$"),
}


@functools.cache
def follow_openmp() -> None:
    """Gives our threads the processors that vLLM bound OpenMP's to, as many as there are of those.

    Once a process, on the thread that runs the model. Does nothing where that thread may use them
    all anyway. METAL_SDPA_NUM_THREADS is left alone.
    """
    processors = bound_processors()
    if not hasattr(os, "sched_setaffinity") or len(processors) < 2:
        return
    if os.sched_getaffinity(0) >= processors:
        return
    if not os.environ.get("METAL_SDPA_NUM_THREADS"):
        set_num_threads(len(processors))
    with _on(processors):
        _start_threads(len(processors))


def bound_processors() -> set[int]:
    """The processors that the environment names for OpenMP's threads; empty where it names none."""
    for name, pattern in _BINDINGS.items():
        match = pattern.search(os.environ.get(name, ""))
        if match:
            return {int(number) for number in re.findall(r"\d+", match[1])}
    return set()


@contextlib.contextmanager
def _on(processors: set[int]) -> Iterator[None]:
    """The calling thread, and what it starts, on these processors."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, processors)
    except OSError:
        # Not ours to use, all of them: then not at all.
        yield
        return
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _start_threads(count: int) -> None:
    """Attention that is work for so many threads: they start with the first that is."""
    rows = np.zeros((1, 4 * count, 256, 64), np.float32)
    sdpa(rows, rows, rows)
