"""Where rows lie: dense, packed one sequence behind the other, or in pages that a table names."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

TABLE_DTYPES = {"i32": np.dtype(np.int32), "i64": np.dtype(np.int64)}
WILD = (-1, 2**31 - 1, -(2**31), -7)  # numbers of no page


@dataclass(frozen=True)
class Lengths:
    """Of a batch: L, S, and of each sequence its rows, its slots and the slots that rows see."""

    rows: int
    slots: int
    rows_in_use: list[int]
    slots_in_use: list[int]
    seen: list[tuple[int, int]]

    @property
    def batch(self) -> int:
        return len(self.rows_in_use)


@dataclass
class Places:
    """Views [batches, heads, rows, width] in memory against values [B, heads, rows, width]."""

    lengths: Lengths
    q_rows: list[int] = field(default_factory=list)  # first row of each sequence; empty: dense
    q_total: int = 0
    kv_rows: list[int] = field(default_factory=list)
    kv_total: int = 0
    page_len: int = 0
    pages: list[np.ndarray] = field(default_factory=list)  # of each sequence
    n_pages: int = 0
    table: np.ndarray | None = None  # [B, entries]

    @property
    def query_extent(self) -> tuple[int, int]:
        return (1, self.q_total) if self.q_rows else (self.lengths.batch, self.lengths.rows)

    @property
    def key_extent(self) -> tuple[int, int]:
        if self.page_len:
            return self.n_pages, self.page_len
        return (1, self.kv_total) if self.kv_rows else (self.lengths.batch, self.lengths.slots)

    def put_queries(self, view: np.ndarray, values: np.ndarray) -> None:
        if not self.q_rows:
            view[...] = values
            return
        for b, (row, n) in enumerate(zip(self.q_rows, self.lengths.rows_in_use, strict=True)):
            view[0, :, row : row + n] = values[b, :, :n]

    def take_queries(self, view: np.ndarray, empty: float = 0) -> np.ndarray:
        """Values of all rows; those out of use, which packed rows do not have, are `empty`."""
        if not self.q_rows:
            return view
        shape = (self.lengths.batch, view.shape[1], self.lengths.rows, view.shape[3])
        values = np.full(shape, empty, view.dtype)
        for b, (row, n) in enumerate(zip(self.q_rows, self.lengths.rows_in_use, strict=True)):
            values[b, :, :n] = view[0, :, row : row + n]
        return values

    def _rows_of(self, b: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Slots of a sequence in use; the batches and the rows where they lie."""
        slots = np.arange(self.lengths.slots_in_use[b])
        if self.page_len:
            return slots, self.pages[b][slots // self.page_len], slots % self.page_len
        if self.kv_rows:
            return slots, np.zeros_like(slots), self.kv_rows[b] + slots
        return slots, np.full_like(slots, b), slots

    def put_keys(self, view: np.ndarray, values: np.ndarray) -> None:
        for b in range(self.lengths.batch):
            slots, batches, rows = self._rows_of(b)
            view[batches, :, rows] = values[b][:, slots].swapaxes(0, 1)

    def take_keys(self, view: np.ndarray) -> np.ndarray:
        shape = (self.lengths.batch, view.shape[1], self.lengths.slots, view.shape[3])
        values = np.zeros(shape, view.dtype)
        for b in range(self.lengths.batch):
            slots, batches, rows = self._rows_of(b)
            values[b][:, slots] = view[batches, :, rows].swapaxes(0, 1)
        return values


def _behind_each_other(lengths: list[int]) -> tuple[list[int], int]:
    """First rows, with a row of nobody before each; all rows."""
    firsts = np.cumsum([1, *(n + 1 for n in lengths)])
    return firsts[:-1].tolist(), int(firsts[-1])


def make_places(
    lengths: Lengths, packed: bool, page_len: int, table: str, rng: np.random.Generator
) -> Places:
    """Pages in random order, some of them nobody's; entries that no row needs name no page."""
    places = Places(lengths, page_len=page_len)
    if packed:
        places.q_rows, places.q_total = _behind_each_other(lengths.rows_in_use)
        if not page_len:
            places.kv_rows, places.kv_total = _behind_each_other(lengths.slots_in_use)
    if not page_len:
        return places
    counts = [-(-n // page_len) for n in lengths.slots_in_use]
    places.n_pages = sum(counts) + 2
    order = rng.permutation(places.n_pages)
    ends = np.cumsum(counts)
    places.pages = [order[end - n : end] for n, end in zip(counts, ends, strict=True)]
    entries = rng.choice(WILD, (lengths.batch, max(counts) + 1))
    for b, (begin, end) in enumerate(lengths.seen):
        if begin < end:
            needed = slice(begin // page_len, (end - 1) // page_len + 1)
            entries[b, needed] = places.pages[b][needed]
    places.table = entries.astype(TABLE_DTYPES[table])
    return places
