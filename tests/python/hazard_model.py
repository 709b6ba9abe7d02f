"""What the hazard tracker must do, written as a model, and dispatches to try it with."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from engine import Arena

SLOTS = 10


@dataclass(frozen=True)
class Mean:
    """target = mean of slots source..source + count."""

    source: int
    count: int
    target: int
    declared: bool = True

    def reads(self) -> set[int]:
        return {0, *range(self.source, self.source + self.count)}

    def conflicts(self, other: Mean) -> bool:
        if not (self.declared and other.declared):
            return True
        return (
            self.target == other.target
            or self.target in other.reads()
            or other.target in self.reads()
        )


@dataclass
class Tracker:
    """The model: a barrier before what conflicts with anything since the last barrier."""

    barriers: int = 0
    pending: list[Mean] = field(default_factory=list)

    def add(self, op: Mean) -> None:
        if any(op.conflicts(other) for other in self.pending):
            self.barriers += 1
            self.pending.clear()
        self.pending.append(op)


@st.composite
def means(draw: st.DrawFn, *, undeclared: bool = False) -> Mean:
    """Dispatches on the arena; a fourth of them undeclared, where `undeclared`."""
    source = draw(st.integers(1, SLOTS - 2))
    count = draw(st.integers(1, min(3, SLOTS - source)))
    declared = not undeclared or draw(st.integers(0, 3)) > 0
    outside = [s for s in range(1, SLOTS) if not source <= s < source + count]
    return Mean(source, count, draw(st.sampled_from(outside)), declared)


def one_by_one(arena: Arena, ops: list[Mean]) -> np.ndarray:
    """What the arena holds when every dispatch has a command buffer to itself."""
    arena.fill()
    for op in ops:
        encoder = arena.device.command_encoder()
        arena.encode_mean(encoder, op.source, op.count, op.target)
        encoder.commit_and_wait()
    return arena.contents()
