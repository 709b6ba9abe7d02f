"""What a case costs at least, and which share of the limit is the target (design, section 8)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from .features import seen_keys
from .shapes import Case

# A peer below this ratio wins; between it and LEAD ours does not lead by the margin that we want.
WINS_BELOW = 0.95
LEAD = 1.15
STEP_LIMIT = 1.25  # t(L + 1) <= 1.25 t(L)


@dataclass(frozen=True)
class Peaks:
    """Limits of this machine with all threads: flop/s, flop/s, bytes/s."""

    fma_f32: float
    bf16_dot: float | None  # None: no such instruction
    read: float

    def flops(self, dtype: str) -> float:
        """The arithmetic limit of a dtype: f16 is widened and multiplied in f32."""
        if dtype == "bf16" and self.bf16_dot:
            return max(self.bf16_dot, self.fma_f32)
        return self.fma_f32

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


def visible_pairs(L: int, S: int, causal: bool) -> int:
    """Pairs of query and key that are not masked; query i sees keys up to S - L + i."""
    if not causal:
        return L * S
    seen = min(L, S)  # queries at a negative position see nothing
    return seen * (S - seen) + seen * (seen + 1) // 2


def flop_count(case: Case) -> int:
    """One multiply and one add for each element of K and of V that a query meets."""
    if case.feature.window or case.feature.mask:
        pairs = int(seen_keys(case.feature, case.causal, case.L, case.S).sum())
    else:
        pairs = visible_pairs(case.L, case.S, case.causal)
    return 4 * case.B * case.Hq * pairs * case.D


def limit_seconds(case: Case, peaks: Peaks, load_seconds: float | None) -> float:
    """The least time the machine allows: arithmetic at its peak or one read of K and V, whichever
    is longer. load_seconds is a pure-load sweep over the same bytes, where one was measured."""
    compute = flop_count(case) / peaks.flops(case.dtype)
    return compute if load_seconds is None else max(compute, load_seconds)


def target_share(case: Case) -> float | None:
    """The share of the limit that is to be reached, or None where only the ratio counts."""
    if case.target == "prefill":
        if case.dtype == "bf16":
            return 0.60
        return 0.80 if case.D >= 128 else 0.75
    return {"chunk": 0.70, "decode": 0.90}.get(case.target)


def target_ratio(case: Case) -> float:
    """The ratio against PyTorch or the best peer that is to be reached."""
    return {"tiny numpy": 3.0, "tiny torch": 1.0}.get(case.target, LEAD)
