"""Continuous batching: requests come and go, and every step runs what there is as one packed batch.

A step takes one token of each sequence that is generating, then pieces of prompts that wait, up
to a budget of tokens; all of them attend in one call a layer (sdpa_paged). The full pages of a
common beginning of prompts are computed once and shared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from host_dtypes import UNIT_ROUNDOFF
from metal_sdpa import Device, merge_states, sdpa, sdpa_paged
from model import Transformer
from paged_cache import PagedCache


@dataclass
class Request:
    """What somebody asks for, and what has become of it."""

    prompt: list[int]
    n_new: int
    arrival: int = 0  # step at which it comes
    pages: list[int] = field(default_factory=list)
    n_cached: int = 0  # tokens whose keys and values are in the cache
    generated: list[int] = field(default_factory=list)
    is_done: bool = False
    # A row of q for each of these, from the first token that is not cached on.
    n_running: int = 0

    @property
    def tokens(self) -> list[int]:
        """All that is known of its text."""
        return self.prompt + self.generated

    @property
    def is_generating(self) -> bool:
        """Whether its prompt is in the cache."""
        return self.n_cached >= len(self.prompt)


@dataclass
class Totals:
    """What a run cost, and what its checks looked at."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    attention_seconds: float = 0.0
    rows: int = 0
    equal_rows: int = 0
    worst_share: float = 0.0  # of what a merged row may differ by


def merged_bound(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, dtype: str
) -> np.ndarray:
    """How far each of the last rows q [L, D] of keys k and values v [n, D] may be, merged from two
    parts, from the row attended alone; of the norm, [L].

    A row alone may be off by 2^-24 (16 + 6 size) of || weights |v| ||, one that is merged from f32
    parts by three times as much and 2^-24 4 |lse|, and each is rounded to dtype once.
    """
    n, length = len(k), len(q)
    scores = np.where(np.tri(length, n, n - length, dtype=bool), q @ k.T * scale, -np.inf)
    most = scores.max(axis=1, keepdims=True)
    weights = np.exp(scores - most)
    sums = weights.sum(axis=1, keepdims=True)
    size = abs(scale) * np.linalg.norm(q, axis=1) * np.linalg.norm(k, axis=1).max()
    lse = np.abs(most + np.log(sums))[:, 0]
    relative = UNIT_ROUNDOFF["f32"] * (4 * (16 + 6 * size) + 4 * np.maximum(lse, size))
    if dtype != "f32":
        relative += 2 * 1.25 * UNIT_ROUNDOFF[dtype]
    return relative * np.linalg.norm(weights / sums @ np.abs(v), axis=1)


def padded(lists: list[list[int]]) -> np.ndarray:
    """A block table [B, most pages]; what is behind a sequence's last page is never looked at."""
    table = np.full((len(lists), max(1, *map(len, lists))), -1, np.int32)
    for row, pages in zip(table, lists, strict=True):
        row[: len(pages)] = pages
    return table


class PagedAttention:
    """model.Attention for the sequences of one step, packed one behind the other."""

    def __init__(self, device: Device, model: Transformer, cache: PagedCache, check: bool) -> None:
        self._device = device
        self._scale = model.config.scale
        self._cache = cache
        self._check = check
        self.totals = Totals()

    def begin(self, batch: list[Request], n_shared: int) -> None:
        """What all layers of a step have in common. The first n_shared pages of every sequence are
        the same, and are attended once for all."""
        self._batch = batch
        self._n_shared = n_shared
        self._n_common = n_shared * self._cache.page_len
        self._slots = self._new_slots()
        self._starts = np.cumsum([0] + [r.n_running for r in batch], dtype=np.int32)
        self._own_lengths = np.array([r.n_cached + r.n_running - self._n_common for r in batch])
        self._own_table = padded([r.pages[n_shared:] for r in batch])

    def attend(self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """q [n_heads, T, head_dim], k and v [n_kv_heads, T, head_dim] of the batch's tokens."""
        dtype = self._cache.keys[layer].dtype
        k, v = (x.transpose(1, 0, 2).astype(dtype) for x in (k, v))
        rows = np.ascontiguousarray(q.transpose(1, 0, 2)).astype(dtype)
        self._cache.write(layer, k, v, self._slots)
        start = perf_counter()
        out = self._merged(layer, rows) if self._n_shared else self._own(layer, rows)
        self.totals.attention_seconds += perf_counter() - start
        if self._check:
            self._compare(layer, rows, out)
        return out.astype(np.float32).transpose(1, 0, 2)

    def _new_slots(self) -> np.ndarray:
        """Where each new token's keys and values go."""
        length = self._cache.page_len
        slots = [
            request.pages[at // length] * length + at % length
            for request in self._batch
            for at in range(request.n_cached, request.n_cached + request.n_running)
        ]
        return np.array(slots, np.int32)

    def _own(self, layer: int, q: np.ndarray, **options: Any) -> Any:
        """Each sequence's rows on its pages, but for those attended once for all."""
        return sdpa_paged(
            q,
            self._cache.keys[layer],
            self._cache.values[layer],
            self._own_table,
            self._own_lengths,
            cu_seqlens_q=self._starts,
            scale=self._scale,
            device=self._device,
            **options,
        )

    def _merged(self, layer: int, q: np.ndarray) -> np.ndarray:
        """The common beginning once for all rows, each sequence's own keys, and the two merged."""
        partials = [np.empty(q.shape, np.float32) for _ in range(2)]
        common, common_lse = sdpa_paged(
            q,
            self._cache.keys[layer],
            self._cache.values[layer],
            np.array([self._batch[0].pages[: self._n_shared]], np.int32),
            [self._n_common],
            cu_seqlens_q=np.array([0, len(q)], np.int32),
            causal=False,
            scale=self._scale,
            device=self._device,
            return_lse=True,
            out=partials[0],
        )
        own, own_lse = self._own(layer, q, return_lse=True, out=partials[1])
        return merge_states([common, own], [common_lse.T, own_lse.T])[0]

    def _compare(self, layer: int, q: np.ndarray, out: np.ndarray) -> None:
        """Every sequence by itself: the same bits, or for merged ones nearly the same numbers."""
        starts = self._starts
        for request, begin, end in zip(self._batch, starts[:-1], starts[1:], strict=True):
            k, v = self._cache.gather(layer, request.pages, request.n_cached + request.n_running)
            alone = sdpa(
                np.ascontiguousarray(q[begin:end].transpose(1, 0, 2))[None],
                k,
                v,
                causal=True,
                scale=self._scale,
                device=self._device,
            )[0].transpose(1, 0, 2)
            self._count(q[begin:end], out[begin:end], alone, k[0], v[0])

    def _count(
        self, q: np.ndarray, out: np.ndarray, alone: np.ndarray, k: np.ndarray, v: np.ndarray
    ) -> None:
        """Rows [L, n_heads, head_dim], keys and values [n_kv_heads, n, head_dim]."""
        q, out, alone, k, v = (x.astype(np.float64) for x in (q, out, alone, k, v))
        self.totals.rows += len(out)
        self.totals.equal_rows += int((out == alone).all(axis=(1, 2)).sum())
        if self._n_shared == 0:
            return
        group = q.shape[1] // len(k)
        for head in range(q.shape[1]):
            bound = merged_bound(
                q[:, head], k[head // group], v[head // group], self._scale, self._cache.dtype
            )
            errors = np.linalg.norm(out[:, head] - alone[:, head], axis=1)
            share = float(np.nan_to_num(errors / bound, nan=np.inf).max())
            self.totals.worst_share = max(self.totals.worst_share, share)


class Server:
    """Runs requests on one model and one cache."""

    def __init__(
        self,
        model: Transformer,
        device: Device,
        cache: PagedCache,
        pick: Callable[[np.ndarray], int],
        *,
        stop: int = -1,
        budget: int = 64,
        common: Sequence[int] = (),
        merge: bool = False,
        check: bool = True,
    ) -> None:
        self._model = model
        self._cache = cache
        self._attention = PagedAttention(device, model, cache, check)
        self._pick = pick
        self._stop = stop  # a token that ends a text
        self._budget = budget  # tokens of a step
        self._merge = merge
        self._common = list(common)
        self._common_pages: list[int] = []
        self._running: list[Request] = []

    @property
    def totals(self) -> Totals:
        return self._attention.totals

    @property
    def running(self) -> list[Request]:
        return self._running

    def run(self, requests: list[Request]) -> Iterator[list[Request]]:
        """Yields after every step the requests that it ran."""
        for request in requests:
            self._require_room(request)
        waiting = deque(sorted(requests, key=lambda request: request.arrival))
        step = 0
        while waiting or self._running:
            while waiting and waiting[0].arrival <= step and self._admit(waiting[0]):
                waiting.popleft()
            if waiting and not self._running and waiting[0].arrival <= step:
                self._forget_common()  # a request that does not share it needs its room
                continue
            batch = self._choose()
            if batch:
                start = perf_counter()
                self._run_step(batch)
                self.totals.seconds += perf_counter() - start
                yield batch
            step += 1
        self._forget_common()

    def _forget_common(self) -> None:
        self._cache.give_back(self._common_pages)
        self._common_pages = []

    def _require_room(self, request: Request) -> None:
        most = len(request.prompt) + request.n_new
        if self._cache.pages_for(most) > self._cache.n_pages:
            raise ValueError(
                f"a request of {most} tokens takes {self._cache.pages_for(most)} pages, "
                f"but the cache has {self._cache.n_pages}"
            )

    def _admit(self, request: Request) -> bool:
        """Gives the request all the pages that it may need, so that nobody is ever thrown out."""
        if self._is_common_on_its_way(request):
            return False  # soon its pages can be shared
        n_pages = self._cache.pages_for(len(request.prompt) + request.n_new)
        shared = self._shared_with(request)
        if n_pages - len(shared) > self._cache.n_free:
            return False
        request.pages = self._cache.share(shared) + self._cache.take(n_pages - len(shared))
        request.n_cached = len(shared) * self._cache.page_len
        self._running.append(request)
        return True

    def _begins_in_common(self, request: Request) -> bool:
        return bool(self._common) and request.prompt[: len(self._common)] == self._common

    def _is_common_on_its_way(self, request: Request) -> bool:
        """Whether somebody is just computing what the request's prompt begins with."""
        has_pages = len(self._common) >= self._cache.page_len
        if self._common_pages or not has_pages or not self._begins_in_common(request):
            return False
        return any(self._begins_in_common(running) for running in self._running)

    def _shared_with(self, request: Request) -> list[int]:
        """Pages of the common beginning, once somebody has filled them."""
        if not self._begins_in_common(request):
            return []
        # The last token of a prompt is always run: its hidden state says what comes next.
        n = min(len(self._common_pages), (len(request.prompt) - 1) // self._cache.page_len)
        return self._common_pages[:n]

    def _choose(self) -> list[Request]:
        """A token of everyone who generates, then prompts as far as the budget goes."""
        batch = [request for request in self._running if request.is_generating]
        for request in batch:
            request.n_running = 1
        left = max(self._budget - len(batch), 1)
        for request in self._running:
            if request.is_generating or left <= 0:
                continue
            request.n_running = min(left, len(request.prompt) - request.n_cached)
            left -= request.n_running
            batch.append(request)
        return batch

    def _run_step(self, batch: list[Request]) -> None:
        self._attention.begin(batch, self._pages_to_merge(batch))
        spans = [range(r.n_cached, r.n_cached + r.n_running) for r in batch]
        tokens = [r.tokens[at] for r, span in zip(batch, spans, strict=True) for at in span]
        positions = [at for span in spans for at in span]
        hidden = self._model.forward(tokens, positions, self._attention)
        self.totals.steps += 1
        self.totals.tokens += len(tokens)
        end = 0
        for request in batch:
            end += request.n_running
            request.n_cached += request.n_running
            if request.is_generating:
                self._take_token(request, self._pick(self._model.logits(hidden[end - 1])))
        self._keep_common(batch)
        self._running = [request for request in self._running if not request.is_done]

    def _pages_to_merge(self, batch: list[Request]) -> int:
        """Pages that all of the batch share, where attending them once is worth a merge."""
        if not self._merge or len(batch) < 2 or not self._common_pages:
            return 0
        n = len(self._common_pages)
        shares = all(
            r.pages[:n] == self._common_pages and r.n_cached >= n * self._cache.page_len
            for r in batch
        )
        return n if shares else 0

    def _take_token(self, request: Request, token: int) -> None:
        request.generated.append(token)
        if token == self._stop or len(request.generated) >= request.n_new:
            request.is_done = True
            self._cache.give_back(request.pages)
            request.pages = []

    def _keep_common(self, batch: list[Request]) -> None:
        """The first request that is past the common beginning lends its pages to all later ones."""
        n = len(self._common) // self._cache.page_len
        if self._common_pages or n == 0:
            return
        for request in batch:
            is_common = self._begins_in_common(request)
            if is_common and request.n_cached >= n * self._cache.page_len and not request.is_done:
                self._common_pages = self._cache.share(request.pages[:n])
                return
