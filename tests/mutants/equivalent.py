"""Random mutants that change nothing anybody could see, by the hash that names them, with why."""

from __future__ import annotations

EQUIVALENT: dict[str, str] = {}
