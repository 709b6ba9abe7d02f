"""Batches of sequences of any lengths, as sdpa_varlen and sdpa_paged take them, and each one alone.

Whatever no sequence owns is poisoned: rows between and behind ranges, slots past a sequence's
length, pages that no table names. Entries of a block table that no query needs are no page numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

import metal_sdpa
from accuracy import lse_errors, output_errors
from arrays import DTYPES, POISONS, Strided, poisoned, same_bits
from features import FEATURES, FeatureProblem
from problems import Shape
from targets import Target

LAYOUTS = ("NHD", "HND")
PAGE_LENS = (1, 3, 16, 64)
# Features that packed rows and pages share with sdpa, but for masks.
SCORE_FEATURES = ("causal", "window", "band", "softcap", "sinks", "alibi", "q_start", "shard")
KINDS = ("decode", "chunk", "prompt", "no rows", "no slots")
# What entries of a table hold that nobody looks at.
PADDING = (-7, -1, 2**31 - 1, 10**6)


def require(target: Target, *names: str) -> None:
    """Every device takes them, by the feature table too."""
    answer = metal_sdpa.supports(target.kind, **dict.fromkeys(names, True))
    assert answer, answer.reason


def ends_of(lengths: list[int], dtype: type = np.int32) -> np.ndarray:
    """[B + 1]."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(dtype)


@dataclass
class Batch:
    """q[b] [L, Hq, D], k[b] [S, Hkv, D], v[b] [S, Hkv, Dv]; call: arguments that sdpa takes for all
    sequences at once; mask: [Hq, Tq, M] or None."""

    dtype: str
    q: list[np.ndarray]
    k: list[np.ndarray]
    v: list[np.ndarray]
    call: dict = field(default_factory=dict)
    mask: np.ndarray | None = None

    @property
    def rows(self) -> list[int]:
        return [len(q) for q in self.q]

    @property
    def slots(self) -> list[int]:
        return [len(k) for k in self.k]

    def shape_of(self, b: int) -> Shape:
        q, k, v = self.q[b], self.k[b], self.v[b]
        return Shape(1, q.shape[1], k.shape[1], len(q), len(k), q.shape[2], v.shape[2])

    def call_of(self, b: int) -> dict:
        """The arguments of sdpa for sequence b alone."""
        call = dict(self.call)
        if "q_start" in call:
            call["q_start"] = int(np.broadcast_to(call["q_start"], len(self.q))[b])
        if "alibi_slopes" in call and call["alibi_slopes"].ndim == 2:
            call["alibi_slopes"] = call["alibi_slopes"][b]
        if self.mask is not None:
            first = sum(self.rows[:b])
            call["mask"] = self.mask[:, first : first + self.rows[b], : self.slots[b]]
        return call

    def arguments(self) -> dict:
        """Of the call for all."""
        return self.call if self.mask is None else self.call | {"mask": self.mask}

    def alone(self, b: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return tuple(x[b].swapaxes(0, 1)[None] for x in (self.q, self.k, self.v))

    def reference(self, b: int):
        arrays = (Strided(x, x, x) for x in self.alone(b))
        call = {"scale": self.shape_of(b).D ** -0.5} | self.call_of(b)
        return FeatureProblem("", self.shape_of(b), self.dtype, *arrays, call).reference()


def random_lengths(rng: np.random.Generator, small: bool) -> tuple[list[int], list[int]]:
    """Rows and slots: decode rows, chunks, whole prompts, nothing at all; in any order."""
    most = 20 if small else 150
    rows, slots = [], []
    for _ in range(int(rng.integers(1, 7))):
        kind = rng.choice(KINDS, p=(0.4, 0.25, 0.25, 0.05, 0.05))
        S = int(rng.choice((1, 2, 15, 16, 17, 63, 64, 65, int(rng.integers(1, most)))))
        S = min(S, most)
        L = {"decode": 1, "chunk": int(rng.integers(2, 9)), "prompt": S, "no rows": 0}
        rows.append(L.get(str(kind), 2))
        slots.append(0 if kind == "no slots" else S)
    return rows, slots


def random_batch(
    seed: tuple[int, ...],
    names: tuple[str, ...] = (),
    *,
    dtype: str = "f32",
    lengths: tuple[list[int], list[int]] | None = None,
    small: bool = False,
) -> Batch:
    """`names`: features, of features.FEATURES or "mask" and "bias" of packed rows."""
    rng = np.random.default_rng(seed)
    rows, slots = lengths or random_lengths(rng, small)
    Hkv, group = (int(n) for n in rng.integers(1, 3, 2))
    D = int(rng.choice((8, 16, 40, 64)))
    Dv = D if rng.random() < 0.7 else int(rng.choice((4, 24, 33)))
    whole = Shape(len(rows), Hkv * group, Hkv, max([1, *rows]), max([1, *slots]), D, Dv)

    def values(count: int, heads: int, width: int) -> np.ndarray:
        return (2 * rng.standard_normal((count, heads, width), np.float32)).astype(DTYPES[dtype])

    batch = Batch(
        dtype,
        [values(n, whole.Hq, D) for n in rows],
        [values(n, Hkv, D) for n in slots],
        [values(n, Hkv, Dv) for n in slots],
    )
    for name in FEATURES:
        if name in names:
            FEATURES[name](rng, whole, dtype, batch.call)
    dims = (whole.Hq, sum(rows), whole.S + int(rng.integers(0, 3)))
    if "mask" in names:
        batch.mask = rng.random(dims) < 0.6
    if "bias" in names:
        batch.mask = (3 * rng.standard_normal(dims, np.float32)).astype(np.float32)
        batch.mask[rng.random(dims) < 0.2] = -np.inf
    return batch


# --- packed --------------------------------------------------------------------------------------


@dataclass
class Packed:
    """[T, H, width] rows of all sequences, with poisoned rows behind each and behind all."""

    array: np.ndarray
    ends: np.ndarray
    lengths: list[int]


def packed(
    parts: list[np.ndarray],
    rng: np.random.Generator,
    *,
    gap: int = 0,
    behind: int = 0,
    index: type = np.int32,
) -> Packed:
    """gap: rows that every range has beside those in use; behind: rows of no sequence."""
    lengths = [len(part) for part in parts]
    ends = ends_of([n + gap for n in lengths], index)
    width = parts[0].shape[1:]
    count = (int(ends[-1]) + behind) * width[0] * width[1]
    poison = str(rng.choice(POISONS))
    array = poisoned(rng, count, parts[0].dtype, poison).reshape(-1, *width)
    for part, begin in zip(parts, ends, strict=False):
        array[begin : begin + len(part)] = part
    return Packed(array, ends, lengths)


# --- pages ---------------------------------------------------------------------------------------


@dataclass
class Pages:
    """k and v, in one layout, and where sequences have their slots."""

    k: np.ndarray
    v: np.ndarray
    table: np.ndarray
    indptr: np.ndarray
    indices: np.ndarray
    layout: str

    def both_tables(self) -> tuple[object, object]:
        return self.table, (self.indptr, self.indices)


def paged(
    batch: Batch,
    rng: np.random.Generator,
    page: int,
    *,
    layout: str = "NHD",
    index: type = np.int32,
    one_tensor: bool = True,
    is_needed=lambda b, i: True,
) -> Pages:
    """is_needed(b, i): whether any query of sequence b needs entry i; the others get padding."""
    counts = [-(-n // page) for n in batch.slots]
    spare = int(rng.integers(1, 4))
    Hkv, D = batch.k[0].shape[1:]
    Dv = batch.v[0].shape[2]
    dtype = batch.k[0].dtype
    poison = str(rng.choice(POISONS))
    n_pages = sum(counts) + spare
    rows = poisoned(rng, n_pages * page * Hkv * (D + Dv), dtype, poison)
    rows = rows.reshape(n_pages, page, Hkv, D + Dv)
    numbers = rng.permutation(n_pages)[: sum(counts)]
    table = rng.choice(PADDING, (len(counts), max([0, *counts]) + 1)).astype(index)
    indptr = ends_of(counts, index)
    for b, begin in enumerate(indptr[:-1]):
        own = numbers[begin : begin + counts[b]].copy()
        for j in range(batch.slots[b]):
            rows[own[j // page], j % page] = np.concatenate([batch.k[b][j], batch.v[b][j]], axis=1)
        unneeded = [i for i in range(counts[b]) if not is_needed(b, i)]
        own[unneeded] = rng.choice(PADDING, len(unneeded))
        table[b, : counts[b]] = own
        numbers[begin : begin + counts[b]] = own
    if layout == "HND":
        rows = np.ascontiguousarray(rows.swapaxes(1, 2))
    k, v = rows[..., :D], rows[..., D:]
    if not one_tensor:
        k, v = k.copy(), v.copy()
    return Pages(k, v, table, indptr, numbers.astype(index), layout)


# --- answers -------------------------------------------------------------------------------------


def check_rows(batch: Batch, b: int, out: np.ndarray, lse: np.ndarray, device, alone=None) -> None:
    """out [L, Hq, Dv] and lse [Hq, L] of sequence b: the bits of sdpa() on it alone, and near the
    float64 answer."""
    wanted = metal_sdpa.sdpa(
        *batch.alone(b), **batch.call_of(b), return_lse=True, device=device
    ) if alone is None else alone  # fmt: skip
    assert same_bits(out, np.ascontiguousarray(wanted[0][0].swapaxes(0, 1))), b
    assert same_bits(np.ascontiguousarray(lse), wanted[1][0]), b
    if batch.rows[b] == 0:
        return
    reference = batch.reference(b)
    assert output_errors(out.swapaxes(0, 1)[None], reference, batch.dtype).max() <= 1, b
    assert lse_errors(lse[None], reference).max() <= 1, b


def check_all(batch: Batch, ends: np.ndarray, out: np.ndarray, lse: np.ndarray, device) -> None:
    for b, begin in enumerate(ends[:-1]):
        end = begin + batch.rows[b]
        check_rows(batch, b, out[begin:end], lse[:, begin:end], device)
