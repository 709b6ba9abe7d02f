"""Holds every attention row of a run against attention in float64 on the same stored numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attention import Attended
from host_dtypes import SMALLEST, UNIT_ROUNDOFF
from kv_cache import KvCache
from model import ModelConfig


@dataclass
class Accuracy:
    """What the comparison found. The worst row is the one that used most of its bound."""

    n_rows: int = 0
    largest_difference: float = 0.0  # over all elements
    worst_error: float = 0.0  # norm of the worst row's difference
    worst_bound: float = float("inf")  # what that norm may be

    @property
    def share(self) -> float:
        """How much of its bound the worst row used."""
        return self.worst_error / self.worst_bound

    @property
    def good(self) -> bool:
        return self.n_rows > 0 and self.share <= 1.0

    def add(self, difference: np.ndarray, bound: np.ndarray) -> None:
        """difference [L, head_dim] of L rows, and the bound [L] of each row's norm."""
        # A NaN would lose every comparison, hence infinity in its place.
        difference = np.where(np.isnan(difference), np.inf, difference)
        errors = np.linalg.norm(difference, axis=-1)
        worst = int(np.argmax(errors / bound))
        self.n_rows += len(errors)
        self.largest_difference = max(self.largest_difference, float(np.abs(difference).max()))
        if errors[worst] / bound[worst] > self.share:
            self.worst_error, self.worst_bound = float(errors[worst]), float(bound[worst])


def check_run(log: list[Attended], cache: KvCache, config: ModelConfig) -> Accuracy:
    """Every row that was attended to since the cache was empty."""
    accuracy = Accuracy()
    for layer in range(config.n_layers):
        calls = [call for call in log if call.layer == layer]
        q = np.concatenate([call.q for call in calls], axis=1).astype(np.float64)
        out = np.concatenate([call.out for call in calls], axis=1)
        keys = cache.read(cache.keys[layer]).astype(np.float64)
        values = cache.read(cache.values[layer]).astype(np.float64)
        for head in range(config.n_heads):
            kv_head = head // (config.n_heads // config.n_kv_heads)
            expected, bound = attention(
                q[head], keys[kv_head], values[kv_head], config.scale, cache.dtype
            )
            accuracy.add(out[head] - expected, bound)
    return accuracy


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """Causal attention of one head in float64, q, k and v [T, D], and each row's bound [T].

    The bound is on the norm of a row's error. It allows for rounding the scores, which softmax
    turns into a relative error of the weights, and for rounding the result to `dtype` once.
    """
    n = len(q)
    visible = np.tri(n, dtype=bool)
    scores = np.where(visible, q @ k.T * scale, -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)

    longest_key = np.maximum.accumulate(np.linalg.norm(k, axis=1))
    largest_score = abs(scale) * np.linalg.norm(q, axis=1) * longest_key
    relative = UNIT_ROUNDOFF["f32"] * (16 + 6 * largest_score)
    if dtype != "f32":
        relative += (1.25 if v.shape[1] >= 8 else 2.0) * UNIT_ROUNDOFF[dtype]
    absolute = SMALLEST[dtype] * np.sqrt(v.shape[1])
    return weights @ v, relative * np.linalg.norm(weights @ np.abs(v), axis=1) + absolute
