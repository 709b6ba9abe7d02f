"""Random attention problems: sdpa's arguments from one seed, with their float64 answer.

Shapes stand around the edges of tiles, layouts are strided in every legal way, and every slot that
no query may see is poisoned. The values spread the softmax: near-uniform weights hide faults.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from arrays import DTYPES, POISONS, LayoutChoice, Strided, strided
from oracle import Reference, attention

# 2047 to 2049: states restart at 2048 keys.
EDGES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
LONG_EDGES = (255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 2047, 2048, 2049, 4097)
HEAD_DIMS = (1, 4, 7, 8, 16, 32, 40, 64, 72, 80, 96, 112, 128, 192, 256, 320, 512, 576, 1024)


@dataclass(frozen=True)
class Limits:
    """How large problems get. work: query rows times keys times (D + Dv)."""

    head_dim: int = 1024
    capacity: int = 4200
    work: int = 1_500_000
    elements: int = 400_000


CPU_LIMITS = Limits()
# The software Metal device runs one GPU thread at a time.
METAL_LIMITS = Limits(head_dim=160, capacity=80, work=40_000, elements=40_000)


@dataclass(frozen=True)
class Shape:
    B: int
    Hq: int
    Hkv: int
    L: int
    S: int
    D: int
    Dv: int


@dataclass(repr=False)
class Problem:
    """One call of sdpa. q [B, Hq, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv], all views."""

    label: str
    shape: Shape
    dtype: str
    family: str
    q: Strided
    k: Strided
    v: Strided
    causal: bool
    scale: float | None
    q_start: int | Sequence[int] | np.ndarray | None
    kv_lengths: int | Sequence[int] | np.ndarray | None

    def arguments(self) -> dict:
        """Keyword arguments of sdpa."""
        return {
            "causal": self.causal,
            "scale": self.scale,
            "q_start": self.q_start,
            "kv_lengths": self.kv_lengths,
        }

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.q.view, self.k.view, self.v.view

    def lengths(self) -> np.ndarray:
        """[B]: keys in use."""
        return lengths_of(self.kv_lengths, self.shape)

    def starts(self) -> np.ndarray:
        """[B]: position of query 0."""
        if self.q_start is None:
            return self.lengths() - self.shape.L
        return np.broadcast_to(np.asarray(self.q_start, np.int64), self.shape.B)

    def softmax_scale(self) -> float:
        return self.shape.D**-0.5 if self.scale is None else self.scale

    def reference(self, **changes: object) -> Reference:
        """The float64 answer; `changes` are arguments of `oracle.attention`, to plant faults."""
        arguments = {
            "scale": self.softmax_scale(),
            "causal": self.causal,
            "q_starts": self.starts(),
            "kv_lengths": self.lengths(),
        }
        q, k, v = (
            changes.pop(name, array) for name, array in zip("qkv", self.arrays(), strict=True)
        )
        return attention(q, k, v, **(arguments | changes))

    def alone(self, b: int) -> tuple[tuple[np.ndarray, ...], dict]:
        """Sequence b by itself: packed arrays with no slot past its length, and the arguments."""
        length = int(self.lengths()[b])
        q = np.ascontiguousarray(self.q.view[b : b + 1])
        k, v = (
            np.ascontiguousarray(x.view[b : b + 1, :, : max(length, 1)]) for x in (self.k, self.v)
        )
        start = int(self.starts()[b])
        return (q, k, v), self.arguments() | {"q_start": start, "kv_lengths": length}

    def __repr__(self) -> str:
        strides = {
            name: tuple(s // x.flat.itemsize for s in x.view.strides)
            for name, x in (("q", self.q), ("k", self.k), ("v", self.v))
        }
        return (
            f"{self.label}: {self.shape} {self.dtype} {self.family} causal={self.causal} "
            f"scale={self.scale} q_start={self.q_start} kv_lengths={self.kv_lengths} {strides}"
        )


def lengths_of(kv_lengths: int | Sequence[int] | np.ndarray | None, shape: Shape) -> np.ndarray:
    """[B] from the argument of sdpa."""
    given = shape.S if kv_lengths is None else kv_lengths
    return np.broadcast_to(np.asarray(given, np.int64), shape.B)


def random_problem(seed: int, index: int, limits: Limits = CPU_LIMITS) -> Problem:
    """Problem `index` of the sweep with this seed."""
    rng = np.random.default_rng((seed, index))
    shape = random_shape(rng, limits)
    return build_problem(
        rng,
        shape,
        dtype=str(rng.choice(list(DTYPES))),
        family=str(rng.choice(list(FAMILIES))),
        causal=bool(rng.random() < 0.6),
        scale=_random_scale(rng),
        q_start=_random_start(rng, shape),
        kv_lengths=_random_lengths(rng, shape),
        label=f"METAL_SDPA_SEED={seed} problem {index}",
    )


def build_problem(
    rng: np.random.Generator,
    shape: Shape,
    *,
    dtype: str,
    family: str = "spread_rows",
    causal: bool = True,
    scale: float | None = None,
    q_start: int | Sequence[int] | np.ndarray | None = None,
    kv_lengths: int | Sequence[int] | np.ndarray | None = None,
    label: str = "problem",
) -> Problem:
    """A problem with these arguments, in random layouts with random poison."""
    q, k, v = _layouts(rng, shape, DTYPES[dtype], str(rng.choice(POISONS)))
    problem = Problem(label, shape, dtype, family, q, k, v, causal, scale, q_start, kv_lengths)
    _write_values(rng, problem)
    return problem


# --- shapes and lengths --------------------------------------------------------------------------


def random_shape(rng: np.random.Generator, limits: Limits) -> Shape:
    D = _head_dim(rng, limits)
    Dv = _head_dim(rng, limits) if rng.random() < 0.35 else D
    work = limits.work * (8 if rng.random() < 0.08 else 1)
    S = _length(rng, min(limits.capacity, limits.elements // max(D, Dv)), long_ones=0.2)
    rows = max(1, work // (S * (D + Dv)))
    most_rows = max(1, min(rows // int(rng.choice((1, 2, 4, 8, 16))), limits.capacity))
    L = 1 if rng.random() < 0.2 else _length(rng, most_rows, long_ones=0.1)
    heads = _clamp(rows // L, 1, 12)
    room = max(1, limits.elements // (S * max(D, Dv)))
    Hkv = int(rng.integers(1, _clamp(min(heads, room), 1, 4) + 1))
    group = int(rng.choice((1, 1, 2, 3, 4, 7, 8)))
    Hq = Hkv * _clamp(group, 1, max(1, heads // Hkv))
    B = int(rng.integers(1, _clamp(min(rows // (L * Hq), room // Hkv), 1, 4) + 1))
    return Shape(B, Hq, Hkv, L, S, D, Dv)


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def _length(rng: np.random.Generator, most: int, long_ones: float) -> int:
    choice = rng.random()
    if choice < long_ones:
        return min(int(rng.choice(LONG_EDGES)), most)
    if choice < 0.7:
        return min(int(rng.choice(EDGES)), most)
    return int(rng.integers(1, min(most, 300) + 1))


def _head_dim(rng: np.random.Generator, limits: Limits) -> int:
    if rng.random() < 0.75:
        return min(int(rng.choice(HEAD_DIMS)), limits.head_dim)
    return int(rng.integers(1, min(limits.head_dim, 1024 if rng.random() < 0.2 else 150) + 1))


def _random_lengths(rng: np.random.Generator, shape: Shape) -> int | list | np.ndarray | None:
    choice = rng.random()
    if choice < 0.3:
        return None
    if choice < 0.55:
        return 0 if rng.random() < 0.1 else int(rng.integers(0, shape.S + 1))
    lengths = rng.integers(0, shape.S + 1, shape.B)
    lengths[rng.random(shape.B) < 0.15] = shape.S
    lengths[rng.random(shape.B) < 0.1] = 0
    return lengths.tolist() if choice < 0.75 else lengths.astype(np.int32)


def _random_start(rng: np.random.Generator, shape: Shape) -> int | list | np.ndarray | None:
    choice = rng.random()
    low, high = -shape.L - 3, shape.S + 4
    if choice < 0.45:
        return None
    if choice < 0.7:
        return int(rng.choice((0, 0, low, high, -(2**40), 2**40, int(rng.integers(low, high)))))
    starts = rng.integers(low, high, shape.B)
    return starts.tolist() if choice < 0.85 else starts


def _random_scale(rng: np.random.Generator) -> float | None:
    choice = rng.random()
    if choice < 0.6:
        return None
    if choice < 0.65:
        return 0.0
    if choice < 0.75:
        return 1.0
    magnitude = float(np.float32(2.0 ** rng.uniform(-6, 1)))  # what the kernel sees is an f32
    return magnitude if choice < 0.9 else -magnitude


# --- memory and values ---------------------------------------------------------------------------


def _layouts(
    rng: np.random.Generator, shape: Shape, dtype: np.dtype, poison: str
) -> tuple[Strided, Strided, Strided]:
    choice = LayoutChoice(
        permute=bool(rng.random() < 0.7),
        reverse=bool(rng.random() < 0.5),
        broadcast=bool(rng.random() < 0.3),
    )
    return tuple(
        strided(rng, dims, dtype, poison, choice)
        for dims in (
            (shape.B, shape.Hq, shape.L, shape.D),
            (shape.B, shape.Hkv, shape.S, shape.D),
            (shape.B, shape.Hkv, shape.S, shape.Dv),
        )
    )


def _write_values(rng: np.random.Generator, problem: Problem) -> None:
    """Fills q, and the slots of k and v that are in use; the others keep their poison."""
    q, k, v = FAMILIES[problem.family](rng, problem.shape, problem.softmax_scale())
    for b, length in enumerate(problem.lengths()):
        problem.k.view[b, :, :length] = k[b, :, :length]
        problem.v.view[b, :, :length] = v[b, :, :length]
    problem.q.view[...] = q


Values = tuple[np.ndarray, np.ndarray, np.ndarray]


def _normal(rng: np.random.Generator, *dims: int) -> np.ndarray:
    return rng.standard_normal(dims, np.float32)


def _size(scale: float) -> float:
    """|scale|, but never so small that a q made with it leaves the range of f16."""
    return max(abs(scale), 0.01) if scale else 1.0


def _spread(shape: Shape, scale: float, deviation: float) -> float:
    """Factor on a standard normal q that gives logits this standard deviation."""
    return deviation / (_size(scale) * np.sqrt(shape.D))


def _noise(rng: np.random.Generator, shape: Shape, scale: float, deviation: float) -> Values:
    q = _normal(rng, shape.B, shape.Hq, shape.L, shape.D) * _spread(shape, scale, deviation)
    k = _normal(rng, shape.B, shape.Hkv, shape.S, shape.D)
    return q, k, _normal(rng, shape.B, shape.Hkv, shape.S, shape.Dv)


def spread_rows(rng: np.random.Generator, shape: Shape, scale: float) -> Values:
    return _noise(rng, shape, scale, rng.uniform(1, 4))


def peaked_rows(rng: np.random.Generator, shape: Shape, scale: float) -> Values:
    return _noise(rng, shape, scale, rng.uniform(8, 30))


def uniform_noise(rng: np.random.Generator, shape: Shape, scale: float) -> Values:
    return tuple(
        rng.random(dims, np.float32) - np.float32(0.5)
        for dims in (
            (shape.B, shape.Hq, shape.L, shape.D),
            (shape.B, shape.Hkv, shape.S, shape.D),
            (shape.B, shape.Hkv, shape.S, shape.Dv),
        )
    )


def cancelling_logits(rng: np.random.Generator, shape: Shape, scale: float) -> Values:
    """Products of q and k are large and come in pairs of opposite sign."""
    q, k, v = _noise(rng, shape, scale, 2)
    half = shape.D // 2
    large = _normal(rng, shape.B, shape.Hkv, shape.S, half) * 8
    k[..., :half] += large
    k[..., half : 2 * half] -= large
    q[..., half : 2 * half] = q[..., :half]
    return q, k, v


def query_near_key(rng: np.random.Generator, shape: Shape, scale: float) -> Values:
    """Each query points along one of the keys, whose logit is 5 to 30."""
    q, k, v = _noise(rng, shape, scale, 0.3)
    head = np.arange(shape.Hq) // (shape.Hq // shape.Hkv)
    chosen = rng.integers(0, shape.S, (shape.B, shape.Hq, shape.L))
    near = k[np.arange(shape.B)[:, None, None], head[None, :, None], chosen]
    factor = rng.uniform(5, 30) / _size(scale)
    squares = np.maximum(np.sum(near**2, axis=3, keepdims=True), shape.D / 4)
    return q + near * (factor / squares), k, v


def constant_values(rng: np.random.Generator, shape: Shape, scale: float) -> Values:
    q, k, v = _noise(rng, shape, scale, rng.uniform(0.5, 8))
    v[...] = np.float32(rng.choice((0.1, 1 / 3, 1e-3, -7.3)))
    return q, k, v


def offset_values(rng: np.random.Generator, shape: Shape, scale: float) -> Values:
    q, k, v = _noise(rng, shape, scale, rng.uniform(0.5, 8))
    return q, k, v * np.float32(0.2) + 3


def equal_scores(rng: np.random.Generator, shape: Shape, scale: float) -> Values:
    q, k, v = _noise(rng, shape, scale, 1)
    return q * 0, k, v + 1


def outlier_channels(rng: np.random.Generator, shape: Shape, scale: float) -> Values:
    """A few channels of k are ten times the rest, as in trained models."""
    q, k, v = _noise(rng, shape, scale, 1)
    k[..., rng.random(shape.D) < 0.1] *= 10
    return q, k, v


def wide_values(rng: np.random.Generator, shape: Shape, scale: float) -> Values:
    """Values that differ in size by up to 2^16, from element to element."""
    q, k, v = _noise(rng, shape, scale, rng.uniform(0.5, 4))
    sizes = np.exp2(rng.uniform(-8, 8, v.shape))
    return q, k, v * sizes.astype(np.float32)


def repeated_keys(rng: np.random.Generator, shape: Shape, scale: float) -> Values:
    """Two to four tokens again and again, each with one value in all its channels: rounding errors
    of a token's weight add up instead of cancelling."""
    q, k, v = _noise(rng, shape, scale, rng.uniform(0.5, 3))
    token = rng.integers(0, rng.integers(2, 5), shape.S)
    return q, k[:, :, token % shape.S], np.broadcast_to(v[..., :1], v.shape)[:, :, token % shape.S]


FAMILIES: dict[str, Callable[[np.random.Generator, Shape, float], Values]] = {
    family.__name__: family
    for family in (
        spread_rows,
        peaked_rows,
        uniform_noise,
        cancelling_logits,
        query_near_key,
        constant_values,
        offset_values,
        equal_scores,
        outlier_channels,
        wide_values,
        repeated_keys,
    )
}
