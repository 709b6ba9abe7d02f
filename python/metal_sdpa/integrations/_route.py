"""A function of another library whose calls can be sent elsewhere, and back."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Route:
    """`module.name`, to be replaced by `replacement` while it is on.

    It is on between `enable` and `disable`, and while a block of `enabled` is open, in all threads.
    Whoever kept or wrapped the replaced function meanwhile gets the library's own once it is off.
    """

    def __init__(self, module: Any, name: str, replacement: Callable[..., Any]) -> None:
        self.own = getattr(module, name)
        self.fallbacks: Counter[str] = Counter()
        self._module, self._name = module, name
        self._replacement = replacement
        self._stands = False
        self._blocks = 0
        self._lock = threading.Lock()

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
        with self._lock:
            self.fallbacks[reason] += 1
        return self.own(*arguments, **keywords)

    def _settle(self) -> None:
        """A function that somebody else put in place of ours, or before us, stays where it is."""
        now, then = (self.own, self._routed) if self.is_on() else (self._routed, self.own)
        if getattr(self._module, self._name) is now:
            setattr(self._module, self._name, then)
