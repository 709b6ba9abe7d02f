"""Keys and values of many sequences in pages that are handed out, shared and taken back."""

from __future__ import annotations

import numpy as np

from host_dtypes import STORAGE
from metal_sdpa import write_kv
from model import ModelConfig


class PagedCache:
    """For each layer k and v [n_pages, page_len, n_kv_heads, head_dim] (layout NHD).

    A page belongs to every sequence that lists it, and is free again when the last one lets go.
    """

    def __init__(self, config: ModelConfig, n_pages: int, page_len: int, dtype: str) -> None:
        self.page_len = page_len
        self.dtype = dtype
        shape = (n_pages, page_len, config.n_kv_heads, config.head_dim)
        # Free slots hold NaN, the worst of leftovers, which must not matter.
        self.keys = [np.full(shape, np.nan, STORAGE[dtype]) for _ in range(config.n_layers)]
        self.values = [np.full(shape, np.nan, STORAGE[dtype]) for _ in range(config.n_layers)]
        self._users = [0] * n_pages
        self._free = list(range(n_pages - 1, -1, -1))

    @property
    def n_free(self) -> int:
        """Pages that nobody uses."""
        return len(self._free)

    @property
    def n_pages(self) -> int:
        """Pages that there are."""
        return len(self._users)

    def pages_for(self, n_tokens: int) -> int:
        """How many pages so many tokens take."""
        return -(-n_tokens // self.page_len)

    def take(self, n: int) -> list[int]:
        """n pages for one user."""
        if n > self.n_free:
            raise ValueError(f"{n} pages are asked for, but {self.n_free} are free")
        pages = [self._free.pop() for _ in range(n)]
        for page in pages:
            self._users[page] = 1
        return pages

    def share(self, pages: list[int]) -> list[int]:
        """The same pages for one user more."""
        for page in pages:
            self._users[page] += 1
        return list(pages)

    def give_back(self, pages: list[int]) -> None:
        """One user less; what nobody uses is free, and wiped so that a late reader would show."""
        for page in pages:
            self._users[page] -= 1
            if self._users[page] > 0:
                continue
            for memory in (*self.keys, *self.values):
                memory[page] = np.nan
            self._free.append(page)

    def write(self, layer: int, k: np.ndarray, v: np.ndarray, slots: np.ndarray) -> None:
        """New tokens' k and v [T, n_kv_heads, head_dim] to slots [T]."""
        write_kv(k, v, self.keys[layer], self.values[layer], slot_mapping=slots)

    def gather(self, layer: int, pages: list[int], n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Copies of a sequence's k and v, [1, n_kv_heads, n_tokens, head_dim]."""
        found = []
        for memory in (self.keys[layer], self.values[layer]):
            rows = memory[pages].reshape(-1, *memory.shape[2:])[:n_tokens]
            found.append(np.ascontiguousarray(rows.transpose(1, 0, 2))[None])
        return found[0], found[1]
