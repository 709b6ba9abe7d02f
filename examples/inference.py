"""A small inference engine: the model, its KV cache, and attention by metal_sdpa."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from attention import FusedAttention
from float64_check import Accuracy, check_run
from kv_cache import KvCache
from metal_sdpa import Device
from model import Transformer


@dataclass
class Phase:
    """What a phase of the run cost; attention_seconds is the part spent in metal_sdpa."""

    tokens: int = 0
    seconds: float = 0.0
    attention_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def attention_share(self) -> float:
        return self.attention_seconds / self.seconds


class Engine:
    """Takes tokens of one sequence in, gives the logits of the next token out."""

    def __init__(self, model: Transformer, device: Device, capacity: int, dtype: str) -> None:
        self.model = model
        self.cache = KvCache(device, model.config, capacity, dtype)
        self.attention = FusedAttention(device, model.config, self.cache)
        self.prefill_phase = Phase()
        self.decode_phase = Phase()

    def prefill(self, tokens: list[int]) -> np.ndarray:
        """Runs a prompt; f32 [vocab_size]."""
        return self._run(tokens, self.prefill_phase)

    def decode(self, token: int) -> np.ndarray:
        """Runs one token more; f32 [vocab_size]."""
        return self._run([token], self.decode_phase)

    def check_accuracy(self) -> Accuracy:
        """Compares every attention row of the run with float64."""
        return check_run(self.attention.log, self.cache, self.model.config)

    def _run(self, tokens: list[int], phase: Phase) -> np.ndarray:
        start, attention_start = perf_counter(), self.attention.seconds
        positions = range(self.cache.length, self.cache.length + len(tokens))
        hidden = self.model.forward(tokens, positions, self.attention)
        logits = self.model.logits(hidden[-1])
        self.cache.advance(len(tokens))
        phase.tokens += len(tokens)
        phase.seconds += perf_counter() - start
        phase.attention_seconds += self.attention.seconds - attention_start
        if not np.isfinite(logits).all():
            raise FloatingPointError(f"the scores after {self.cache.length} tokens are not finite")
        return logits
