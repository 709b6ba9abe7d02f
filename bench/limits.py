"""This machine's limits, measured by the shared library that peaks.cpp becomes."""

from __future__ import annotations

import ctypes as c
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .roofline import Peaks

ROOT = Path(__file__).resolve().parent.parent
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"

FLOP_ROUNDS = 400_000  # about ten milliseconds
TRIES = 12
STREAMS = 2  # places that a thread reads at once
SWEEPS = 8


class Limits:
    """Measures with `threads` threads. OSError where the library was not built."""

    def __init__(self, threads: int) -> None:
        directory = Path(os.environ.get("METAL_SDPA_BENCH_BUILD", ROOT / "build" / "bench"))
        self._library = c.CDLL(str(directory / f"libpeaks{SUFFIX}"))
        self._threads = threads
        for name in ("peaks_fma_f32", "peaks_bf16_dot"):
            function = getattr(self._library, name)
            function.argtypes, function.restype = [c.c_int, c.c_int64, c.c_int], c.c_double
        self._library.peaks_isa.restype = c.c_char_p
        self._library.peaks_load.restype = c.c_double

    @property
    def isa(self) -> str:
        return self._library.peaks_isa().decode()

    def load_seconds(self, arrays: Sequence[np.ndarray]) -> float:
        """The time to load every byte of the arrays once."""
        n = len(arrays)
        addresses = (c.c_void_p * n)(*[array.ctypes.data for array in arrays])
        sizes = (c.c_size_t * n)(*[array.nbytes for array in arrays])
        return self._library.peaks_load(addresses, sizes, n, self._threads, STREAMS)

    def measure(self, cache_bytes: int) -> Peaks:
        """The best of several tries; loads walk over more than four times the last-level cache."""
        fma = self._library.peaks_fma_f32(self._threads, FLOP_ROUNDS, TRIES)
        dot = self._library.peaks_bf16_dot(self._threads, FLOP_ROUNDS, TRIES)
        array = np.ones(4 * cache_bytes + (64 << 20), dtype=np.uint8)
        seconds = min(self.load_seconds([array]) for _ in range(SWEEPS))
        return Peaks(fma, dot or None, array.nbytes / seconds)


def best_of(first: Peaks, second: Peaks) -> Peaks:
    """A limit is what was reached at any time of the run."""
    dots = [peak for peak in (first.bf16_dot, second.bf16_dot) if peak]
    return Peaks(
        max(first.fma_f32, second.fma_f32),
        max(dots) if dots else None,
        max(first.read, second.read),
    )
