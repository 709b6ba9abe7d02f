"""The table of sdpa()'s arguments, and the tool that makes texts from it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

TOOL = Path(__file__).resolve().parents[2] / "tools" / "parameter_texts.py"


def parameter_texts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parameter_texts", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
