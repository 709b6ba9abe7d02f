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


class Counts:
    """Counts of calls, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = 0
        self._fell_back: dict[str, int] = {}
        self._last_reason: str | None = None

    def take(self) -> None:
        """One that ran here."""
        with self._lock:
            self._taken += 1

    def fall_back(self, reason: str) -> None:
        """One that the library's own function is to run."""
        with self._lock:
            self._last_reason = reason
            if reason not in self._fell_back and len(self._fell_back) >= _MOST_REASONS:
                reason = _OTHERS
            self._fell_back[reason] = self._fell_back.get(reason, 0) + 1

    def stats(self) -> Stats:
        with self._lock:
            return Stats(self._taken, dict(self._fell_back), self._last_reason)

    def reset(self) -> None:
        with self._lock:
            self._taken, self._last_reason = 0, None
            self._fell_back.clear()


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
        self.counts = Counts()

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

    def fall_back(self, reason: str, *arguments: Any, **keywords: Any) -> Any:
        """The library's own result, with the reason counted."""
        self.counts.fall_back(reason)
        return self.own(*arguments, **keywords)

    def _settle(self) -> None:
        """A function that somebody else put in place of ours, or before us, stays where it is."""
        now, then = (self.own, self._routed) if self.is_on() else (self._routed, self.own)
        if getattr(self._module, self._name) is now:
            setattr(self._module, self._name, then)
