"""Correctness of what was timed: sampled rows against attention in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .data import Inputs
from .features import distances

UNIT_ROUNDOFF = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}
SMALLEST_SUBNORMAL = {"f32": 2.0**-149, "f16": 2.0**-24, "bf16": 2.0**-133}
SAMPLED_ROWS = 6

# A library keeps what precision it likes (ours is held to its bound, too), but a wrong mask, head
# or layout is an error of order 1.
WRONG_ABOVE = 0.05

# Keys further below the largest score have no weight in f32: their bias is not in the bound.
COUNTING_BELOW = 104.0

Row = tuple[int, int, int]  # b, h, i


@dataclass(frozen=True)
class ExactRow:
    """One output row in float64, and what the relative error of a row may be."""

    row: Row
    out: np.ndarray  # [D]
    scale: float  # || sum_j p_j |v_j| ||, what an error is measured against
    bound: float  # design, section 4

    def error(self, actual: np.ndarray) -> float:
        error = float(np.linalg.norm(actual.astype(np.float64) - self.out) / self.scale)
        return math.inf if math.isnan(error) else error  # max() may pass over a NaN


def sample_rows(inputs: Inputs) -> list[Row]:
    """The rows that are checked: the first, the last, and some between them."""
    case = inputs.case
    total = case.B * case.Hq * case.L
    flat = np.unique(np.linspace(0, total - 1, min(SAMPLED_ROWS, total)).astype(np.int64))
    per_batch = case.Hq * case.L
    return [(int(n // per_batch), int(n // case.L % case.Hq), int(n % case.L)) for n in flat]


def exact_bias(inputs: Inputs, h: int, i: int) -> np.ndarray:
    """What is added to the scores of query i of head h, [S]."""
    case = inputs.case
    bias = np.zeros(case.S)
    if inputs.bias is not None:
        bias += inputs.bias[i]
    if inputs.slopes is not None:
        bias -= float(inputs.slopes[h]) * distances(case.L, case.S)[i]
    return bias


def exact_row(inputs: Inputs, row: Row) -> ExactRow:
    """Attention of one row over the first cache."""
    case = inputs.case
    b, h, i = row
    seen = inputs.seen[i]
    k, v = (cache[b, h // case.group, seen].astype(np.float64) for cache in inputs.caches[0])
    q = inputs.q[b, h, i].astype(np.float64)
    scores = k @ q * inputs.scale
    if case.feature.softcap:
        scores = case.feature.softcap * np.tanh(scores / case.feature.softcap)
    bias = exact_bias(inputs, h, i)[seen]
    scores = scores + bias
    sink = -math.inf if inputs.sinks is None else float(inputs.sinks[h])
    largest = max(scores.max(), sink)
    weights = np.exp(scores - largest)
    weights /= weights.sum() + math.exp(sink - largest)
    scale = float(np.linalg.norm(weights @ np.abs(v)))
    largest_score = float(np.linalg.norm(q) * np.linalg.norm(k, axis=1).max()) * inputs.scale
    largest_score += float(np.abs(bias[scores > largest - COUNTING_BELOW]).max(initial=0.0))
    bound = UNIT_ROUNDOFF["f32"] * (16.0 + 6.0 * largest_score)
    if case.dtype != "f32":
        factor = 1.25 if case.D >= 8 else 2.0
        subnormal = SMALLEST_SUBNORMAL[case.dtype] * case.D**0.5 / scale
        bound += factor * UNIT_ROUNDOFF[case.dtype] + subnormal
    return ExactRow(row, weights @ v, scale, bound)


class Oracle:
    """The exact rows of one case, computed when first asked for."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs

    @cached_property
    def rows(self) -> list[ExactRow]:
        return [exact_row(self._inputs, row) for row in sample_rows(self._inputs)]

    def errors(self, out: np.ndarray) -> list[float]:
        """Relative errors of the sampled rows of an output [B, Hq, L, D] over the first cache."""
        return [exact.error(out[exact.row]) for exact in self.rows]

    def share_of_bound(self, errors: list[float]) -> float:
        """The largest error over its bound; at most 1 is what we promise of ours."""
        return max(error / exact.bound for error, exact in zip(errors, self.rows, strict=True))
