"""Statistics of paired samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Paired:
    """The ratio theirs / ours over the rounds of one run: above 1, ours is faster."""

    ratio: float  # the median of the rounds' ratios
    low: float  # its quartiles
    high: float
    pairs: int


def median(samples: Sequence[float]) -> float:
    return float(np.median(np.asarray(samples, dtype=np.float64)))


def paired_ratio(theirs: Sequence[float], ours: Sequence[float]) -> Paired:
    """Compares sample i of one with sample i of the other, which ran in the same round; a peer
    that was measured in fewer rounds is compared over those. ValueError without a sample."""
    pairs = min(len(theirs), len(ours))
    if pairs == 0:
        raise ValueError("paired_ratio: no sample to compare")
    ratios = np.asarray(theirs[:pairs], dtype=np.float64) / np.asarray(ours[:pairs])
    low, mid, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return Paired(float(mid), float(low), float(high), pairs)


def steps(times: dict[int, float]) -> dict[int, float]:
    """t(L+1) / t(L) for each L that has both."""
    return {L: times[L + 1] / times[L] for L in sorted(times) if L + 1 in times}
