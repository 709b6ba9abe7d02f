"""unpack_corpus.py CORPUS FOLDER: one file a line of hexadecimal, as libFuzzer wants them."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path


def inputs(text: str) -> list[bytes]:
    """The inputs of a corpus; lines that begin with # are not inputs."""
    lines = (line.strip() for line in text.splitlines())
    return [bytes.fromhex(line) for line in lines if line and not line.startswith("#")]


def main(corpus: str, folder: str) -> None:
    """Runs the command line."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for data in inputs(Path(corpus).read_text(encoding="ascii")):
        (target / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


if __name__ == "__main__":
    main(*sys.argv[1:])
