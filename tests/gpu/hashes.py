"""SHA-256 of every shader and shader header, as the result file records them."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULT_FILE = ROOT / "docs" / "gpu-results.json"


def shader_hashes() -> dict[str, str]:
    files = sorted([*(ROOT / "shaders").glob("*.metal"), *(ROOT / "shaders").glob("*.h")])
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
