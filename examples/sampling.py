"""Picks the next token from the model's scores."""

from __future__ import annotations

import numpy as np

TOP_K = 40  # a small model's long tail of unlikely tokens is mostly noise


class Sampler:
    """Temperature 0 takes the best token; above it, one of the TOP_K best by chance."""

    def __init__(self, temperature: float, seed: int) -> None:
        self._temperature = temperature
        self._random = np.random.default_rng(seed)

    def pick(self, logits: np.ndarray) -> int:
        if self._temperature == 0:
            return int(logits.argmax())
        best = np.argsort(-logits, kind="stable")[:TOP_K]
        scaled = (logits[best] - logits[best[0]]).astype(np.float64) / self._temperature
        weights = np.exp(scaled)
        return int(self._random.choice(best, p=weights / weights.sum()))
