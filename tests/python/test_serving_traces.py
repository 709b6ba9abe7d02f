"""Random lives of a paged cache: allocate, append, share, free, attend; against a dense model."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from arrays import DTYPES, same_bits
from metal_sdpa import Device, sdpa, sdpa_paged, write_kv
from serving import PADDING, require
from targets import Target, sweep_seed

HEADS, KV_HEADS, DIM, VALUE_DIM = 4, 2, 16, 8
TRACES, STEPS = 200, 14


@dataclass
class Sequence:
    """Its slots, as the model has them, and its pages."""

    k: np.ndarray
    v: np.ndarray
    pages: list[int] = field(default_factory=list)


class Trace:
    """The cache under test, and what it should hold."""

    def __init__(self, seed: tuple[int, ...], device: Device, dtype: str) -> None:
        self.rng = np.random.default_rng(seed)
        self.device = device
        self.dtype = DTYPES[dtype]
        self.page = int(self.rng.choice((1, 3, 4, 16)))
        self.layout = str(self.rng.choice(("NHD", "HND")))
        self.n_pages = 96 // self.page
        axes = (self.page, KV_HEADS) if self.layout == "NHD" else (KV_HEADS, self.page)
        cache = np.full((self.n_pages, *axes, DIM + VALUE_DIM), np.nan, self.dtype)
        self.k, self.v = cache[..., :DIM], cache[..., DIM:]
        self.uses = np.zeros(self.n_pages, int)
        self.sequences: list[Sequence] = []
        self.attended = 0

    def values(self, *shape: int) -> np.ndarray:
        return (2 * self.rng.standard_normal(shape, np.float32)).astype(self.dtype)

    def new_page(self) -> int | None:
        free = np.flatnonzero(self.uses == 0)
        if free.size == 0:
            return None
        page = int(self.rng.choice(free))
        self.uses[page] += 1
        return page

    def room_for(self, sequence: Sequence, count: int) -> int:
        """Slots that it may append, at most `count`, once pages for them are taken."""
        end = len(sequence.k) + count
        while len(sequence.pages) * self.page < end:
            page = self.new_page()
            if page is None:
                break
            sequence.pages.append(page)
        return min(end, len(sequence.pages) * self.page) - len(sequence.k)

    def allocate(self) -> None:
        if len(self.sequences) < 5:
            empty = (np.zeros((0, KV_HEADS, w), self.dtype) for w in (DIM, VALUE_DIM))
            self.sequences.append(Sequence(*empty))

    def append(self) -> None:
        if not self.sequences:
            return
        sequence = self.pick()
        count = self.room_for(sequence, int(self.rng.choice((1, 1, 2, 7, 20))))
        k, v = self.values(count, KV_HEADS, DIM), self.values(count, KV_HEADS, VALUE_DIM)
        at = np.arange(len(sequence.k), len(sequence.k) + count)
        if self.rng.random() < 0.5:
            pages = np.array(sequence.pages, int)
            slots = pages[at // self.page] * self.page + at % self.page
            where = {"slot_mapping": slots}
        else:
            k, v = k[None], v[None]
            where = {"block_table": [sequence.pages or [-1]], "positions": at[None]}
        write_kv(k, v, self.k, self.v, **where, layout=self.layout)
        sequence.k = np.concatenate([sequence.k, k.reshape(-1, KV_HEADS, DIM)])
        sequence.v = np.concatenate([sequence.v, v.reshape(-1, KV_HEADS, VALUE_DIM)])

    def share(self) -> None:
        """A new sequence that begins with whole pages of another."""
        if not self.sequences or len(self.sequences) >= 5:
            return
        other = self.pick()
        whole = len(other.k) // self.page
        pages = other.pages[: int(self.rng.integers(0, whole + 1))]
        slots = len(pages) * self.page
        self.uses[pages] += 1
        self.sequences.append(Sequence(other.k[:slots], other.v[:slots], list(pages)))

    def free(self) -> None:
        """Its pages hold NaN as soon as nobody else has them."""
        if not self.sequences:
            return
        sequence = self.sequences.pop(int(self.rng.integers(len(self.sequences))))
        np.subtract.at(self.uses, sequence.pages, 1)
        unused = self.uses == 0
        self.k[unused] = np.nan
        self.v[unused] = np.nan

    def attend(self) -> None:
        """Decode rows, chunks and whole prompts of some sequences, in any order."""
        if not self.sequences:
            return
        chosen = self.rng.permutation(len(self.sequences))[: int(self.rng.integers(1, 6))]
        batch = [self.sequences[b] for b in chosen]
        rows = [int(self.rng.choice((0, 1, 1, 3, len(s.k)))) for s in batch]
        ends = np.cumsum([0, *rows])
        q = self.values(int(ends[-1]), HEADS, DIM)
        most = max(len(s.pages) for s in batch) + 1
        table = self.rng.choice(PADDING, (len(batch), most)).astype(np.int32)
        for b, sequence in enumerate(batch):
            used = -(-len(sequence.k) // self.page)
            table[b, :used] = sequence.pages[:used]
        call = {"return_lse": True, "device": self.device}
        if self.rng.random() < 0.3:
            call["window"] = int(self.rng.integers(1, 20))
        lengths = np.array([len(s.k) for s in batch], np.int32)
        out, lse = sdpa_paged(
            q, self.k, self.v, table, lengths, cu_seqlens_q=ends, layout=self.layout, **call
        )
        for b, sequence in enumerate(batch):
            own = slice(ends[b], ends[b + 1])
            arrays = (x.swapaxes(0, 1)[None] for x in (q[own], sequence.k, sequence.v))
            wanted = sdpa(*arrays, causal=True, **call)
            assert same_bits(out[own], np.ascontiguousarray(wanted[0][0].swapaxes(0, 1)))
            assert same_bits(np.ascontiguousarray(lse[:, own]), wanted[1][0])
        self.attended += int(ends[-1])

    def pick(self) -> Sequence:
        return self.sequences[int(self.rng.integers(len(self.sequences)))]

    def run(self) -> None:
        self.allocate()
        self.append()
        steps = (self.allocate, self.append, self.append, self.share, self.free, self.attend)
        for choice in self.rng.choice(len(steps), STEPS, p=(0.1, 0.2, 0.2, 0.1, 0.1, 0.3)):
            steps[choice]()


@pytest.mark.parametrize("part", range(4))
def test_traces(part: int, target: Target) -> None:
    require(target, "paged", "varlen")
    count = TRACES // 4 if target.kind == "cpu" else 5
    device = target.device()
    attended = 0
    for index in range(part * count, (part + 1) * count):
        trace = Trace((sweep_seed(), index), device, list(DTYPES)[index % 3])
        try:
            trace.run()
        except Exception as error:
            error.add_note(f"trace {index}")
            raise
        attended += trace.attended
    assert attended > 10 * count
