"""A function of another library whose calls can be sent elsewhere, and back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# Reasons hold numbers: beyond so many of them the rest is counted together.
_MOST_REASONS = 64
_OTHERS = "other reasons"


@dataclass(frozen=True)
class Stats:
    """What became of the calls.

    taken: calls that ran here; fell_back: calls that the library's own function ran, by the reason;
    last_reason: of the latest of them.
    """

    taken: int = 0
    fell_back: dict[str, int] = field(default_factory=dict)
    last_reason: str | None = None


class Route:
    """`module.name`, to be replaced by `replacement` while it is on.

    It is on between `enable` and `disable`, and while a block of `enabled` is open, in all threads.
    Whoever kept or wrapped the replaced function meanwhile gets the library's own once it is off.
    """

    def __init__(self, module: Any, name: str, replacement: Callable[..., Any]) -> None:
        self.own = getattr(module, name)
        self._module, self._name = module, name
        self._replacement = replacement
        self._stands = False
        self._blocks = 0
        self._lock = threading.Lock()
        self._stats = Stats()

        def routed(*arguments: Any, **keywords: Any) -> Any:
            function = self._replacement if self.is_on() else self.own
            return function(*arguments, **keywords)

        routed.__name__, routed.__doc__ = name, self.own.__doc__
        self._routed = routed

    def is_on(self) -> bool:
        return self._stands or self._blocks > 0

    def enable(self) -> None:
        with self._lock:
            self._stands = True
            self._settle()

    def disable(self) -> None:
        with self._lock:
            self._stands = False
            self._settle()

    @contextmanager
    def enabled(self) -> Iterator[None]:
        with self._lock:
            self._blocks += 1
            self._settle()
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                self._settle()

    def take(self) -> None:
        """Counts a call that runs here."""
        with self._lock:
            now = self._stats
            self._stats = Stats(now.taken + 1, now.fell_back, now.last_reason)

    def fall_back(self, reason: str, *arguments: Any, **keywords: Any) -> Any:
        """The library's own result, with the reason counted."""
        with self._lock:
            counts = dict(self._stats.fell_back)
            key = reason if reason in counts or len(counts) < _MOST_REASONS else _OTHERS
            counts[key] = counts.get(key, 0) + 1
            self._stats = Stats(self._stats.taken, counts, reason)
        return self.own(*arguments, **keywords)

    def stats(self) -> Stats:
        with self._lock:
            now = self._stats
            return Stats(now.taken, dict(now.fell_back), now.last_reason)

    def reset_stats(self) -> None:
        with self._lock:
            self._stats = Stats()

    def _settle(self) -> None:
        """A function that somebody else put in place of ours, or before us, stays where it is."""
        now, then = (self.own, self._routed) if self.is_on() else (self._routed, self.own)
        if getattr(self._module, self._name) is now:
            setattr(self._module, self._name, then)
