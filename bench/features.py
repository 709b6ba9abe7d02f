"""What a case has beside scale and causality, for scores or of where keys lie, and what it may
cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCKS = 8  # on the diagonal of a "blocks" mask
ALIBI_MAX_BIAS = 8.0  # slopes 2 ** (-8 (h + 1) / Hq), as ALiBi's paper and ggml have them


@dataclass(frozen=True)
class Feature:
    """One feature, or none. `mask` is a boolean one: "causal" (what causal=True hides), "blocks"
    (documents of equal length) or "all" (nothing hidden)."""

    name: str = ""
    window: int = 0  # keys that a query sees, its own among them; 0: all
    softcap: float = 0.0
    alibi: bool = False
    bias: bool = False  # an additive mask [L, S] in f32
    mask: str = ""
    sinks: bool = False
    page: int = 0  # keys of a page; 0: one piece of memory a sequence
    # Our time with the feature over our time without, at most.
    cost_limit: float | None = None

    @property
    def needs(self) -> frozenset[str]:
        """What a library has to be able to do."""
        have = {
            "window": self.window > 0,
            "softcap": self.softcap > 0,
            "alibi": self.alibi,
            "bias": self.bias,
            "mask": bool(self.mask),
            "sinks": self.sinks,
            "pages": self.page > 0,
        }
        return frozenset(name for name, used in have.items() if used)


PLAIN = Feature()
FULL_MASK = Feature("all seen", mask="all")


def seen_keys(feature: Feature, causal: bool, L: int, S: int) -> np.ndarray:
    """True where a query sees a key, [L, S]; query i stands at S - L + i."""
    query = np.arange(S - L, S)[:, None]
    key = np.arange(S)[None, :]
    seen = np.ones((L, S), dtype=bool)
    if causal or feature.mask == "causal":
        seen &= key <= query
    if feature.window:
        seen &= key > query - feature.window
    if feature.mask == "blocks":
        seen &= query * BLOCKS // S == key * BLOCKS // S
    return seen


def alibi_slopes(n_heads: int) -> np.ndarray:
    heads = np.arange(1, n_heads + 1)
    return (2.0 ** (-ALIBI_MAX_BIAS * heads / n_heads)).astype(np.float32)


def distances(L: int, S: int) -> np.ndarray:
    """|position of the query - position of the key|, [L, S] in f32."""
    query = np.arange(S - L, S, dtype=np.float32)[:, None]
    return np.abs(query - np.arange(S, dtype=np.float32)[None, :])
