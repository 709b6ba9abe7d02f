"""Attention problems with features: sdpa's arguments from one seed, with their float64 answer.

Whatever no row may see is poisoned: slots of K and V, rows of q out of use, entries of an additive
mask at keys that causality, window, starts or lengths hide.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from arrays import DTYPES, POISONS, LayoutChoice, Strided, poisoned, strided
from oracle import Reference, attention, visibility
from problems import EDGES, FAMILIES, Shape, lengths_of

# A feature changes sdpa's arguments, among which may be what an earlier one gave.
Feature = Callable[[np.random.Generator, Shape, str, dict], None]
FEATURES: dict[str, Feature] = {}
# Two ways to give one argument.
ALTERNATIVES = ({"window", "band"}, {"bool_mask", "bias"}, {"q_start", "shard"})

REGIMES = ("prefill", "chunk", "decode")


def feature(function: Feature) -> Feature:
    FEATURES[function.__name__] = function
    return function


def pairs() -> list[tuple[str, str]]:
    """Every two features that go together."""
    found = itertools.combinations(FEATURES, 2)
    return [pair for pair in found if not any(set(pair) <= both for both in ALTERNATIVES)]


# --- features ------------------------------------------------------------------------------------


@feature
def causal(rng: np.random.Generator, shape: Shape, dtype: str, call: dict) -> None:
    call["causal"] = True


@feature
def window(rng: np.random.Generator, shape: Shape, dtype: str, call: dict) -> None:
    call["window"] = int(rng.choice((1, 2, 15, 16, 17, 64, 65, int(rng.integers(1, shape.S + 2)))))


@feature
def band(rng: np.random.Generator, shape: Shape, dtype: str, call: dict) -> None:
    left, right = (int(n) for n in rng.integers(0, shape.S + 2, 2))
    choices = ((left, right), (left, None), (-1, right), (0, 0), (left // 4, right // 4))
    call["window"] = choices[int(rng.integers(len(choices)))]


@feature
def softcap(rng: np.random.Generator, shape: Shape, dtype: str, call: dict) -> None:
    call["softcap"] = float(np.float32(rng.choice((0.5, 5, 30, 1000)) * rng.uniform(0.5, 1)))


@feature
def sinks(rng: np.random.Generator, shape: Shape, dtype: str, call: dict) -> None:
    of_sinks = np.float32 if rng.random() < 0.5 else DTYPES[dtype]
    values = rng.uniform(-6, 6, 2 * shape.Hq + 1).astype(of_sinks)
    values[rng.random(values.size) < 0.2] = -np.inf
    choices = (values[: shape.Hq], values[1::2][::-1], np.array(values[0]))
    call["sinks"] = choices[int(rng.integers(len(choices)))]


@feature
def alibi(rng: np.random.Generator, shape: Shape, dtype: str, call: dict) -> None:
    slopes = rng.uniform(-0.05, 0.5, (shape.B, 2 * shape.Hq)).astype(np.float32)
    per_sequence = slopes[:, ::2] if rng.random() < 0.5 else slopes[::-1, shape.Hq :]
    call["alibi_slopes"] = per_sequence if rng.random() < 0.5 else per_sequence[0]


@feature
def bool_mask(rng: np.random.Generator, shape: Shape, dtype: str, call: dict) -> None:
    dims = _mask_dims(rng, shape)
    mask = rng.random(dims) < rng.choice((0.05, 0.5, 0.95))
    if len(dims) > 1 and rng.random() < 0.5:  # whole blocks and whole rows that nobody sees
        mask[..., : dims[-2] // 2, : dims[-1] // 2] = False
        mask[..., 0, :] = False
    call["mask"] = _relaid(rng, mask)


@feature
def bias(rng: np.random.Generator, shape: Shape, dtype: str, call: dict) -> None:
    of_mask = DTYPES[str(rng.choice(list(DTYPES)))]
    mask = (4 * rng.standard_normal(_mask_dims(rng, shape))).astype(of_mask)
    mask[rng.random(mask.shape) < rng.choice((0.0, 0.3, 0.9))] = -np.inf
    call["mask"] = _relaid(rng, mask)


@feature
def kv_lengths(rng: np.random.Generator, shape: Shape, dtype: str, call: dict) -> None:
    call["kv_lengths"] = _numbers(rng, 0, shape.S, shape.B)


@feature
def kv_starts(rng: np.random.Generator, shape: Shape, dtype: str, call: dict) -> None:
    call["kv_starts"] = _numbers(rng, 0, shape.S, shape.B)


@feature
def query_lengths(rng: np.random.Generator, shape: Shape, dtype: str, call: dict) -> None:
    call["query_lengths"] = _numbers(rng, 0, shape.L, shape.B)


@feature
def q_start(rng: np.random.Generator, shape: Shape, dtype: str, call: dict) -> None:
    call["q_start"] = _numbers(rng, -shape.L - 3, shape.S + 4, shape.B)


@feature
def shard(rng: np.random.Generator, shape: Shape, dtype: str, call: dict) -> None:
    """Every n-th key, from one on that may stand anywhere."""
    stride = int(rng.integers(1, 6))
    call["key_stride"] = stride
    call["key_offset"] = int(rng.integers(-10, 11))
    call["q_start"] = _numbers(rng, -shape.L, shape.S * stride + 4, shape.B)


@feature
def out_f32(rng: np.random.Generator, shape: Shape, dtype: str, call: dict) -> None:
    call["out"] = np.full((shape.B, shape.Hq, shape.L, shape.Dv), np.nan, np.float32)


def _numbers(rng: np.random.Generator, low: int, high: int, batch: int) -> object:
    numbers = rng.integers(low, high + 1, batch)
    choices = (int(numbers[0]), numbers.tolist(), numbers.astype(np.int32))
    return choices[int(rng.integers(3))]


def _mask_dims(rng: np.random.Generator, shape: Shape) -> tuple[int, ...]:
    """What broadcasts to [B, Hq, L, S]: any rank, size 1 on any axis but seldom on the last."""
    dims = [shape.B, shape.Hq, shape.L, shape.S]
    for axis in range(4):
        if rng.random() < (0.4 if axis < 3 else 0.1):
            dims[axis] = 1
    return tuple(dims[int(rng.choice((0, 0, 0, 1, 2, 3))) :])


def _relaid(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """The same elements in another layout: axes in any order, negative and doubled strides."""
    order = rng.permutation(mask.ndim)
    copy = np.ascontiguousarray(mask.transpose(order)).transpose(np.argsort(order))
    choice = rng.random()
    if choice < 0.3:
        return np.ascontiguousarray(copy[..., ::-1])[..., ::-1]
    if choice < 0.6:
        return np.repeat(copy, 2, axis=-1)[..., ::2]
    return copy


# --- problems ------------------------------------------------------------------------------------


@dataclass(repr=False)
class FeatureProblem:
    """One call of sdpa. call: its keyword arguments."""

    label: str
    shape: Shape
    dtype: str
    q: Strided
    k: Strided
    v: Strided
    call: dict

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.q.view, self.k.view, self.v.view

    def reference(self, **changes: object) -> Reference:
        """The float64 answer; `changes` are arguments of `oracle.attention`, to plant faults."""
        shape, call = self.shape, self.call
        scores = {
            "scale": call.get("scale", shape.D**-0.5),
            "softcap": call.get("softcap"),
            "mask": call.get("mask"),
            "sinks": _broadcast(call.get("sinks"), (shape.Hq,)),
            "slopes": _broadcast(call.get("alibi_slopes"), (shape.B, shape.Hq)),
        }
        return attention(*self.arrays(), **(seen_keys(call, shape) | scores | changes))

    def out_dtype(self) -> str:
        return "f32" if "out" in self.call else self.dtype

    def __repr__(self) -> str:
        small = {n: getattr(x, "shape", x) for n, x in self.call.items()}
        return f"{self.label}: {self.shape} {self.dtype} {small}"


def _broadcast(array: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    return None if array is None else np.broadcast_to(array, shape)


def seen_keys(call: dict, shape: Shape) -> dict:
    """Arguments of `oracle.attention` that say which keys a row sees."""
    rows = np.broadcast_to(np.asarray(call.get("query_lengths", shape.L)), shape.B)
    lengths = lengths_of(call.get("kv_lengths"), shape)
    starts = call.get("q_start")
    given = call.get("window", (-1, -1))
    sides = given if isinstance(given, tuple) else (given - 1, 0)
    return {
        "causal": call.get("causal", False),
        "q_starts": lengths - rows if starts is None else np.broadcast_to(starts, shape.B),
        "kv_lengths": lengths,
        "kv_starts": np.broadcast_to(np.asarray(call.get("kv_starts", 0)), shape.B),
        "query_lengths": rows,
        "window": tuple(-1 if side is None else side for side in sides),
        "key_offset": call.get("key_offset", 0),
        "key_stride": call.get("key_stride", 1),
    }


def random_shape(rng: np.random.Generator, regime: str, small: bool) -> Shape:
    """Around the edges of tiles; `small` for a device that runs one thread at a time."""
    most = 40 if small else 300
    S = int(rng.choice(EDGES)) if rng.random() < 0.5 else int(rng.integers(1, most))
    L = 1 if regime == "decode" else int(rng.integers(2, 17))
    if regime == "prefill":
        L = int(rng.integers(17, 36 if small else 70))
    D = int(rng.choice((8, 16, 33, 40, 64, 80, 128)))
    Dv = D if rng.random() < 0.7 else int(rng.choice((4, 24, 64, 100)))
    Hkv, group = (int(n) for n in rng.integers(1, 3 if small else 4, 2))
    return Shape(int(rng.integers(1, 4)), Hkv * group, Hkv, L, min(S, most), D, Dv)


def feature_problem(
    seed: Iterable[int],
    names: Iterable[str],
    *,
    dtype: str,
    regime: str,
    dense: bool,
    small: bool = False,
) -> FeatureProblem:
    """A problem with these features."""
    rng = np.random.default_rng(tuple(seed))
    shape = random_shape(rng, regime, small)
    call: dict = {"scale": float(np.float32(shape.D**-0.5))}
    for name in FEATURES:  # in one order: shard gives the q_start that goes with it
        if name in names:
            FEATURES[name](rng, shape, dtype, call)
    if dtype == "f32":
        call.pop("out", None)  # no other dtype than q's
    label = f"{'+'.join(names) or 'plain'} {regime} seed {tuple(seed)}"
    return _filled(rng, label, shape, dtype, call, dense)


def _filled(
    rng: np.random.Generator, label: str, shape: Shape, dtype: str, call: dict, dense: bool
) -> FeatureProblem:
    poison = str(rng.choice(POISONS))
    choice = LayoutChoice(permute=not dense, reverse=not dense)
    dims = (
        (shape.B, shape.Hq, shape.L, shape.D),
        (shape.B, shape.Hkv, shape.S, shape.D),
        (shape.B, shape.Hkv, shape.S, shape.Dv),
    )
    q, k, v = (strided(rng, d, DTYPES[dtype], poison, choice) for d in dims)
    family = FAMILIES[str(rng.choice(("spread_rows", "peaked_rows", "query_near_key")))]
    for array, values in zip((q, k, v), family(rng, shape, call["scale"]), strict=True):
        array.view[...] = values
    problem = FeatureProblem(label, shape, dtype, q, k, v, call)
    _poison_hidden(rng, problem, poison)
    return problem


def _poison_hidden(rng: np.random.Generator, problem: FeatureProblem, poison: str) -> None:
    shape, call = problem.shape, problem.call
    arguments = seen_keys(call, shape)
    in_band = visibility(shape.L, shape.S, **arguments)
    mask = call.get("mask")
    visible = np.broadcast_to(in_band[:, None], (shape.B, shape.Hq, shape.L, shape.S))
    if mask is not None and mask.dtype != bool:
        call["mask"] = mask = _poisoned_mask(mask, visible)
    if mask is not None:
        with np.errstate(invalid="ignore"):
            visible = visible & (mask if mask.dtype == bool else ~np.isneginf(mask))
    by_kv_head = visible.reshape(shape.B, shape.Hkv, -1, shape.L, shape.S).any(axis=(2, 3))
    for array, used in ((problem.k, by_kv_head), (problem.v, by_kv_head)):
        array.view[~used] = poisoned(rng, 1, array.flat.dtype, poison)
    problem.q.view[~visible.any(axis=3)] = poisoned(rng, 1, problem.q.flat.dtype, poison)


def _poisoned_mask(mask: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """NaN in every entry that stands for hidden keys only."""
    used = visible
    missing = 4 - mask.ndim
    for axis in range(4):
        if axis < missing or mask.shape[axis - missing] == 1:
            used = used.any(axis=axis, keepdims=True)
    mask[~used.reshape(mask.shape)] = np.nan
    return mask
