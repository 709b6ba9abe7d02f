"""Attention problems as arrays, the float64 oracle, and the accuracy bounds of the contract."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from places import Lengths, Places, make_places

UNIT_ROUNDOFF = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}
SMALLEST_SUBNORMAL = {"f32": 2.0**-149, "f16": 2.0**-24, "bf16": 2.0**-133}
EXACT_SCORES = ("huge", "lowest")  # one product each, which rounds to the same for equal keys
STORAGE = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
    "bool": np.dtype(np.uint8),
}
LOWEST = {"f32": -3.4028234663852886e38, "f16": -65504.0, "bf16": -3.3895313892515355e38}
NOTHING = 104  # exp(-104) is below half of the smallest f32


def to_storage(values: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded to nearest even; bf16 as its bits."""
    values = np.asarray(values, np.float32)
    if dtype == "bool":
        return (values != 0).astype(np.uint8) * 3  # True is any byte but 0
    if dtype != "bf16":
        return values.astype(STORAGE[dtype])
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def from_storage(array: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != "bf16":
        return array.astype(np.float64)
    return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


@dataclass(frozen=True)
class Case:
    """One problem; shape letters as everywhere. kv_lens: one length, or one a sequence."""

    B: int = 1
    Hq: int = 4
    Hkv: int = 2
    L: int = 1
    S: int = 64
    D: int = 64
    Dv: int = 0  # 0: D
    dtype: str = "f16"
    causal: bool = True
    q_start: int | None = None  # None: kv_len - L
    kv_lens: tuple[int, ...] = ()  # empty: S
    q_starts: tuple[int, ...] = ()
    scale: float | None = None
    spread: str = "noise"  # see _values
    layout: str = "packed"  # packed, bshd (heads inside rows), odd (offsets and strides by 1)
    kernel: str = "auto"  # auto, straight, decode, prefill
    span_len: int = 0  # 0: the table's
    packed_params: bool = False  # straight kernel with SdpaParamsBlock
    nan_query: bool = False
    poison: str = (
        ""  # what the last key and value hold: "nan", "inf"; "score": a key that scores -inf
    )
    window: tuple[int, int] = (-1, -1)  # left, right
    kv_starts: tuple[int, ...] = ()  # one, or one a sequence
    query_lens: tuple[int, ...] = ()
    key_offset: int = 0
    key_stride: int = 1
    mask: str = ""  # its dtype: bool, f32, f16, bf16
    mask_axes: str = "BHLS"  # those along which it differs
    mask_family: str = "random"  # random, blocks, all, lowest
    mask_keys_last: bool = True
    softcap: float = 0.0
    alibi: bool = False
    sinks: str = ""  # their dtype
    out_f32: bool = False
    packed: bool = False  # rows of q, out and, without pages, of k and v, behind each other
    page_len: int = 0  # rows of a page of k and v; 0: no pages
    table: str = "i32"  # dtype of the block table

    @property
    def value_dim(self) -> int:
        return self.Dv or self.D

    @property
    def group(self) -> int:
        return self.Hq // self.Hkv

    @property
    def softmax_scale(self) -> float:
        return 1 / math.sqrt(self.D) if self.scale is None else self.scale

    def lengths(self) -> list[int]:
        return list(self.kv_lens) or [self.S] * self.B

    def starts(self) -> list[int]:
        if self.q_starts:
            return list(self.q_starts)
        if self.q_start is not None:
            return [self.q_start] * self.B
        return [n - rows for n, rows in zip(self.lengths(), self.rows_in_use(), strict=True)]

    @property
    def out_dtype(self) -> str:
        return "f32" if self.out_f32 else self.dtype

    def first_slots(self) -> list[int]:
        return self._each(self.kv_starts, 0)

    def rows_in_use(self) -> list[int]:
        return self._each(self.query_lens, self.L)

    def _each(self, numbers: tuple[int, ...], default: int) -> list[int]:
        return list(numbers) if len(numbers) == self.B else [*(numbers or (default,))] * self.B

    @property
    def per_sequence(self) -> bool:
        several = len(self.kv_starts) > 1 or len(self.query_lens) > 1
        several = several or self.packed or self.page_len > 0
        return bool(self.kv_lens or self.q_starts or several)

    def name(self) -> str:
        default = Case()
        fields = {k: v for k, v in self.__dict__.items() if v != getattr(default, k)}
        return " ".join(f"{k}={v}" for k, v in fields.items()) or "default"


def _values(case: Case, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    q = rng.standard_normal((case.B, case.Hq, case.L, case.D))
    k = rng.standard_normal((case.B, case.Hkv, case.S, case.D))
    v = rng.standard_normal((case.B, case.Hkv, case.S, case.value_dim))
    if case.spread == "peaked":  # logits of some tens: a few keys hold nearly all weight
        q *= 8
    elif case.spread == "match":  # each query is close to one key
        for i in range(case.L):
            q[:, :, i] = np.repeat(k[:, :, (7 * i) % case.S], case.group, 1) * 1.5
    elif case.spread == "constant":  # uniform weights, the same value everywhere
        q *= 0
        v = np.broadcast_to(rng.uniform(0.5, 1, case.value_dim), v.shape).copy()
    elif case.spread == "mean":  # nonzero mean of V, large cancelling logits
        v += 3
        k += 2
        q[..., 1::2] = -q[..., 0 : 2 * (case.D // 2) : 2]
    elif case.spread == "rising":  # the maximum moves with every key
        q = np.abs(q)
        k = np.abs(k) * np.linspace(0.1, 2, case.S)[None, None, :, None]
    elif case.spread == "huge":  # scores from minus to plus the largest float, some of them equal
        q[...] = np.eye(case.D)[0]
        k[...] = 0
        largest = 60000.0 if case.dtype == "f16" else 3.3e38
        k[..., 0] = largest * np.linspace(-1, 1, case.S).round(1)
    elif case.spread == "lowest":  # the same far negative score everywhere: the mean of V
        q[...] = np.eye(case.D)[0]
        k[...] = 0
        k[..., 0] = -60000.0 if case.dtype == "f16" else -3.3e38
    elif case.spread == "million":  # around the largest reference that is a multiple of ln 2
        q[...] = np.eye(case.D)[0]
        k[...] = 0
        k[..., 0] = 2.0**10 * (1 + np.linspace(-4, 4, case.S) * 2.0**-10)
    return q, k, v


@dataclass
class Tensor:
    """A [B, H, rows, D] view into flat storage: element offset and strides."""

    storage: np.ndarray
    offset: int
    strides: tuple[int, int, int]
    shape: tuple[int, int, int, int]
    n_elements: int = 0  # where not 0: storage over and over, up to so many elements

    @property
    def byte_len(self) -> int:
        return (self.n_elements or self.storage.size) * self.storage.itemsize

    def view(self) -> np.ndarray:
        size = self.storage.itemsize
        return np.lib.stride_tricks.as_strided(
            self.storage[self.offset :], self.shape, [s * size for s in (*self.strides, 1)]
        )


def _tensor(shape: tuple[int, int, int, int], layout: str, dtype: str, fill: float) -> Tensor:
    """Flat storage full of `fill`, exactly as long as the view needs."""
    B, H, rows, D = shape
    offset, gap = (3, 1) if layout == "odd" else (0, 0)
    row = H * (D + gap) if layout == "bshd" else D + gap
    head = D if layout == "bshd" else rows * row
    batch = rows * row if layout == "bshd" else H * head
    last = (B - 1) * batch + (H - 1) * head + (rows - 1) * row + D
    storage = to_storage(np.full(offset + last, fill, np.float32), dtype)
    return Tensor(storage, offset, (batch, head, row), shape)


@dataclass
class Scores:
    """What comes with scores: a mask over [B, Hq, L, S], and numbers of heads."""

    mask: np.ndarray | None = None  # storage; axes along which it does not differ have length 1
    mask_strides: tuple[int, ...] = (0, 0, 0, 0)  # in elements
    sinks: np.ndarray | None = None  # storage [Hq]
    slopes: np.ndarray | None = None  # f32 [B, Hq]


@dataclass
class Problem:
    """A case with its tensors. Everything that no key in use occupies is NaN."""

    case: Case
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    places: Places
    scores: Scores = field(default_factory=Scores)


def in_reach(case: Case, b: int) -> np.ndarray:
    """[L, S]: which slots each row of sequence b sees, but for a mask, from positions."""
    slots = np.arange(case.S)
    rows = np.arange(case.L)
    behind = case.key_offset + slots * case.key_stride - (case.starts()[b] + rows)[:, None]
    seen = (slots >= case.first_slots()[b]) & (slots < case.lengths()[b])
    seen = seen & (rows < case.rows_in_use()[b])[:, None]
    left, right = case.window
    if case.causal:
        right = 0
    if right >= 0:
        seen = seen & (behind <= right)
    return seen & (-behind <= left) if left >= 0 else seen


def _mask_values(case: Case, rng: np.random.Generator) -> np.ndarray:
    sizes = zip("BHLS", (case.B, case.Hq, case.L, case.S), strict=True)
    shape = tuple(n if axis in case.mask_axes else 1 for axis, n in sizes)
    sees = rng.random(shape) < 0.6
    if case.mask_family == "blocks":
        rows, slots = (np.arange(n) for n in shape[2:])
        sees = np.broadcast_to(rows[:, None] // 20 == slots // 20, shape)
    elif case.mask_family == "all":
        sees = np.ones(shape, bool)
    if case.mask == "bool":
        return sees
    values = np.where(sees, rng.standard_normal(shape), -np.inf)
    if case.mask_family == "all":
        values = np.zeros(shape)
    if case.mask_family == "lowest":
        values = np.where(sees, LOWEST[case.mask], 0)
        values[:, :, ::2] = LOWEST[case.mask]
    return values


def _scores(case: Case, rng: np.random.Generator) -> Scores:
    scores = Scores()
    if case.mask:
        values = _mask_values(case, rng)
        stored = to_storage(values, case.mask)
        if not case.mask_keys_last:
            stored = np.ascontiguousarray(stored.swapaxes(2, 3)).swapaxes(2, 3)
        strides = (s // stored.itemsize for s in stored.strides)
        scores.mask = stored
        scores.mask_strides = tuple(
            0 if n == 1 else s for n, s in zip(stored.shape, strides, strict=True)
        )
    if case.sinks:
        scores.sinks = to_storage(rng.standard_normal(case.Hq) * 2, case.sinks)
    if case.alibi:
        scores.slopes = (rng.standard_normal((case.B, case.Hq)) * 0.1).astype(np.float32)
    return scores


def make_problem(case: Case, seed: int = 1) -> Problem:
    rng = np.random.default_rng(seed)
    q, k, v = _values(case, rng)
    for b in range(case.B):
        unseen = ~in_reach(case, b).any(0)
        if not case.mask and case.window == (-1, -1):
            unseen = np.arange(case.S) >= case.lengths()[b]
        k[b, :, unseen] = np.nan
        v[b, :, unseen] = np.nan
    if case.nan_query:
        q[:, :, 0, 0] = np.nan
    for b, n in enumerate(case.lengths()):
        if case.poison and n > 0:
            poison(case.poison, q[b], k[b, :, n - 1], v[b, :, n - 1])
    places = places_of(case, rng)
    (q_batches, q_rows), (k_batches, k_rows) = places.query_extent, places.key_extent
    shapes = [
        (q_batches, case.Hq, q_rows, case.D),
        (k_batches, case.Hkv, k_rows, case.D),
        (k_batches, case.Hkv, k_rows, case.value_dim),
        (q_batches, case.Hq, q_rows, case.value_dim),
    ]
    dtypes = [case.dtype] * 3 + [case.out_dtype]
    tensors = [
        _tensor(shape, case.layout, dtype, math.nan)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    for tensor, values in zip(tensors, (q, k, v), strict=False):
        put = places.put_queries if values is q else places.put_keys
        put(tensor.view(), to_storage(values, case.dtype))
    return Problem(case, *tensors, places, _scores(case, rng))


def places_of(case: Case, rng: np.random.Generator) -> Places:
    seen = []
    for b in range(case.B if case.page_len else 0):
        slots = np.flatnonzero(in_reach(case, b).any(0))
        seen.append((int(slots[0]), int(slots[-1]) + 1) if slots.size else (0, 0))
    lengths = Lengths(case.L, case.S, case.rows_in_use(), case.lengths(), seen)
    return make_places(lengths, case.packed, case.page_len, case.table, rng)


def poison(what: str, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
    """Bad numbers for one key and its value, and what the queries need for that."""
    if what == "nan":
        k[...] = np.nan
    if what == "score":
        q[..., 0] = 1
        k[:, 0] = -np.inf
    v[...] = np.inf if what == "inf" else np.nan


@dataclass
class Reference:
    """Float64 results [B, Hq, L, Dv] and [B, Hq, L]; magnitude is ||sum_j p_j |v_j|| a row, reach
    |scale| * max_j ||q|| ||k_j|| and the largest bias that counts."""

    out: np.ndarray
    lse: np.ndarray
    magnitude: np.ndarray
    reach: np.ndarray


def _additive(problem: Problem) -> np.ndarray:
    """[B, Hq, L, S]: what a mask adds to scores, -inf where it hides."""
    case, stored = problem.case, problem.scores.mask
    shape = (case.B, case.Hq, case.L, case.S)
    if stored is None:
        return np.broadcast_to(np.float64(0), shape)
    if case.mask == "bool":
        return np.broadcast_to(np.where(stored != 0, 0.0, -np.inf), shape)
    return np.broadcast_to(from_storage(stored, case.mask), shape)


@dataclass
class _Row:
    """A query, the keys that it sees with their values and biases, and its sink."""

    q: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    bias: np.ndarray
    sink: float


def _reference_row(case: Case, row: _Row, result: Reference, at: tuple[int, int, int]) -> None:
    result.lse[at] = row.sink
    scores = case.softmax_scale * (row.keys @ row.q)
    if case.softcap:
        scores = case.softcap * np.tanh(scores / case.softcap)
    scores = scores + row.bias
    values = row.values
    if case.poison == "score":  # a key whose score is -inf counts as hidden
        values = np.where(np.isneginf(scores)[:, None], 0, values)
    if np.isneginf(scores).all():
        return
    top = max(scores.max(), row.sink)
    weights = np.exp(scores - top)
    total = weights.sum() + math.exp(row.sink - top)
    result.out[at] = weights @ values / total
    result.lse[at] = top + math.log(total)
    result.magnitude[at] = np.linalg.norm(weights @ np.abs(values) / total)
    counted = np.abs(row.bias)[scores >= top - NOTHING].max(initial=0)
    if row.sink >= top - NOTHING:
        counted = max(counted, abs(row.sink))
    result.reach[at] = counted
    if case.spread not in EXACT_SCORES:
        finite = row.keys[~np.isinf(row.keys).any(1)]
        longest = np.sqrt((finite**2).sum(1).max())
        result.reach[at] += abs(case.softmax_scale) * np.linalg.norm(row.q) * longest


def reference(problem: Problem) -> Reference:
    case = problem.case
    places = problem.places
    q = from_storage(places.take_queries(problem.q.view()), case.dtype)
    k = from_storage(places.take_keys(problem.k.view()), case.dtype)
    v = from_storage(places.take_keys(problem.v.view()), case.dtype)
    sinks = problem.scores.sinks
    sinks = None if sinks is None else from_storage(sinks, case.sinks)
    shape = (case.B, case.Hq, case.L)
    result = Reference(
        np.zeros((*shape, case.value_dim)),
        np.full(shape, -np.inf),
        np.zeros(shape),
        np.zeros(shape),
    )
    additive = _additive(problem)
    for b in range(case.B):
        reach = in_reach(case, b)
        for h in range(case.Hq):
            keys, values = k[b, h // case.group], v[b, h // case.group]
            for i in range(case.rows_in_use()[b] if case.packed else case.L):
                bias = np.where(reach[i], additive[b, h, i], -np.inf)
                if problem.scores.slopes is not None:
                    slots = case.key_offset + np.arange(case.S) * case.key_stride
                    distance = np.abs(case.starts()[b] + i - slots)
                    bias = bias - float(problem.scores.slopes[b, h]) * distance
                seen = ~np.isneginf(bias)
                sink = -np.inf if sinks is None else sinks[h]
                row = _Row(q[b, h, i], keys[seen], values[seen], bias[seen], sink)
                _reference_row(case, row, result, (b, h, i))
    return result


@dataclass
class Verdict:
    """Largest error over its bound (output, lse), and what is wrong where that is not a number."""

    output: float
    lse: float
    fault: str = ""

    @property
    def good(self) -> bool:
        return not self.fault and self.output <= 1 and self.lse <= 1


def judge(case: Case, expected: Reference, out: np.ndarray, lse: np.ndarray) -> Verdict:
    """Errors over the bounds of design section 4. out as float64, lse f32."""
    nan_rows = np.isnan(expected.out).any(-1)
    if (
        not (np.isnan(out).all(-1) == nan_rows).all()
        or not (np.isnan(out).any(-1) == nan_rows).all()
    ):
        return Verdict(math.inf, math.inf, "NaN in the wrong rows")
    infinite = np.isinf(expected.out)
    if not (out[infinite] == expected.out[infinite]).all():
        return Verdict(math.inf, math.inf, "infinities in the wrong places")
    good = ~nan_rows & ~infinite.any(-1)
    f32_term = 2.0**-24 * (16 + 6 * expected.reach)
    relative = f32_term
    if case.dtype != "f32":
        relative = f32_term + (1.25 if case.value_dim >= 8 else 2) * UNIT_ROUNDOFF[case.dtype]
    bound = relative * expected.magnitude
    bound = bound + SMALLEST_SUBNORMAL[case.out_dtype] * math.sqrt(case.value_dim)
    error = np.linalg.norm(out - expected.out, axis=-1)
    output_ratio = float((error / bound)[good].max(initial=0))
    empty = np.isneginf(expected.lse)
    if not (np.isneginf(lse) == empty)[good].all():
        return Verdict(output_ratio, math.inf, "lse of empty rows")
    used = good & ~empty
    lse_bound = f32_term + 2.0**-24 * 2 * np.abs(expected.lse)
    lse_ratio = np.abs(lse[used].astype(np.float64) - expected.lse[used]) / lse_bound[used]
    return Verdict(output_ratio, float(lse_ratio.max(initial=0)))
