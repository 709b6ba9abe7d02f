"""Inputs of a case, in memory as an engine would hold them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from .features import alibi_slopes, distances, seen_keys
from .shapes import Case

NUMPY_DTYPES = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}

# Elements that are drawn at random; a longer array repeats them. The length is a prime, so that no
# two rows of a cache start at the same place of it.
POOL_ELEMENTS = 4_194_301
ALIGNMENT = 128  # bytes, as engines and our own buffers have it


@dataclass(frozen=True)
class Inputs:
    """q [B, Hq, L, D] and the caches (k, v), each [B, Hkv, S, D], over which calls rotate."""

    case: Case
    q: np.ndarray
    caches: list[tuple[np.ndarray, np.ndarray]]
    bias: np.ndarray | None = None  # f32 [L, S]

    @property
    def seen(self) -> np.ndarray:
        """True where a query sees a key, [L, S]."""
        return seen_keys(self.case.feature, self.case.causal, self.case.L, self.case.S)

    @property
    def slopes(self) -> np.ndarray | None:
        return alibi_slopes(self.case.Hq) if self.case.feature.alibi else None

    @property
    def sinks(self) -> np.ndarray | None:
        """f32 [Hq], about as large as a score."""
        if not self.case.feature.sinks:
            return None
        return np.linspace(-1.0, 3.0, self.case.Hq, dtype=np.float32)

    def whole_bias(self) -> np.ndarray:
        """What is added to the scores, f32 [1 or Hq, L, S]: for a library that has no ALiBi."""
        if self.bias is not None:
            return self.bias[None]
        assert self.slopes is not None
        return -self.slopes[:, None, None] * distances(self.case.L, self.case.S)

    def of(self, case: Case) -> Inputs:
        """The same arrays for another case of their shape."""
        return replace(self, case=case, bias=self.bias if case.feature.bias else None)

    @property
    def scale(self) -> float:
        return float(self.case.D**-0.5)


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array whose first element stands at a multiple of ALIGNMENT bytes."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


class Pool:
    """Random numbers that every case draws from: standard normal, converted once a dtype."""

    def __init__(self, seed: int = 20) -> None:
        generator = np.random.Generator(np.random.SFC64(seed))
        self._f32 = generator.standard_normal(POOL_ELEMENTS, dtype=np.float32)
        self._converted = {"f32": self._f32}
        self._position = 0

    def draw(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """The next elements of the pool, round and round."""
        if dtype not in self._converted:
            self._converted[dtype] = self._f32.astype(NUMPY_DTYPES[dtype])
        source = self._converted[dtype]
        out = aligned_empty(shape, NUMPY_DTYPES[dtype])
        flat = out.reshape(-1)
        filled = 0
        while filled < flat.size:
            n = min(flat.size - filled, source.size - self._position)
            flat[filled : filled + n] = source[self._position : self._position + n]
            filled += n
            self._position = (self._position + n) % source.size
        return out


def cache_count(case: Case, cache_bytes: int) -> int:
    """Caches to rotate over, so that together they are more than four times the last-level cache
    (`cache_bytes`); 1 where a case does not rotate."""
    if not case.rotates:
        return 1
    return 4 * cache_bytes // case.kv_bytes + 1


def make_inputs(case: Case, pool: Pool, cache_bytes: int) -> Inputs:
    kv_shape = (case.B, case.Hkv, case.S, case.D)
    q = pool.draw((case.B, case.Hq, case.L, case.D), case.dtype)
    caches = [
        (pool.draw(kv_shape, case.dtype), pool.draw(kv_shape, case.dtype))
        for _ in range(cache_count(case, cache_bytes))
    ]
    bias = pool.draw((case.L, case.S), "f32") if case.feature.bias else None
    return Inputs(case, q, caches, bias)
