"""Tests with real engines: one process, one thread, no network."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def registered() -> Iterator[None]:
    """transformers with our attentions and its own cache."""
    from metal_sdpa.integrations import transformers as metal

    metal.register(cache=False)
    yield
    metal.unregister()


@pytest.fixture
def keywords_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str], list[dict[str, Any]]]:
    """keywords_of(module, name): those of every later call of the function, which runs as ever."""

    def watch(module: Any, name: str) -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = []
        stock = getattr(module, name)

        def counted(*arrays: Any, **keywords: Any) -> Any:
            seen.append(keywords)
            return stock(*arrays, **keywords)

        monkeypatch.setattr(module, name, counted)
        return seen

    return watch
