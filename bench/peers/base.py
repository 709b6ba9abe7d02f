"""What a library that is measured has to offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from ..data import Inputs
from ..shapes import Case


class UnsupportedCaseError(Exception):
    """The library has no way to compute a case; the text says why."""


@dataclass(frozen=True)
class Bound:
    """A case made ready: everything that an engine does once, and not at every call, is done."""

    calls: list[Callable[[], object]]  # one for each cache; each computes the whole attention
    output: Callable[[], np.ndarray]  # [B, Hq, L, D] after calls[0], of any dtype


class Peer(ABC):
    """One library. Importing its module may fail: then the library is not installed."""

    name: str
    version: str
    features: frozenset[str] = frozenset()  # of Feature.needs, beside none at all

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @abstractmethod
    def variants(self, case: Case) -> list[str]:
        """Ways to compute the case, of which the quickest counts. Raises UnsupportedCaseError."""

    def awake(self) -> AbstractContextManager[object]:
        """Held around a sample by a library whose threads must be woken before and sent to sleep
        after, so that they do not disturb the next one."""
        return nullcontext()

    @abstractmethod
    def bind(self, inputs: Inputs, variant: str) -> Bound:
        """Raises UnsupportedCaseError where the library turns out to refuse the case."""


def fold_queries(q: np.ndarray, n_kv_heads: int) -> np.ndarray:
    """[B, Hq, L, D] seen as [B, Hkv, G * L, D]: the queries that share a KV head become rows of
    one head, so that a library without grouped queries reads each key once."""
    B, Hq, L, D = q.shape
    return q.reshape(B, n_kv_heads, Hq // n_kv_heads * L, D)


def folded_mask(case: Case) -> np.ndarray:
    """True where a query sees a key: [G * L, S] for queries folded by fold_queries."""
    mask = np.tril(np.ones((case.L, case.S), dtype=bool), k=case.S - case.L)
    return np.tile(mask, (case.group, 1))


def needs_mask(case: Case) -> bool:
    """Whether some query does not see every key."""
    return case.causal and case.L > 1
