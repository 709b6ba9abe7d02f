#!/usr/bin/env python3
"""Makes one text of all Metal shaders, with their own includes inlined.

That text is what the build compiles to the .metallib, what it embeds as the fallback, and what the
tests run. `--output` writes it, `--cpp` writes a C++ file that holds it and its SHA-256, and
`--verify` proves that a built binary holds exactly this text.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from pathlib import Path

LOCAL_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
PRAGMA_ONCE = re.compile(r"^\s*#\s*pragma\s+once\b")
# Raw string literals end at this; no shader may hold it.
DELIMITER = "metal_sdpa_msl"


class FlattenError(Exception):
    """A shader that cannot be flattened."""


def flatten(shaders: list[Path]) -> str:
    """The text of `shaders`, in order of name, each local include once where it is first met."""
    if not shaders:
        raise FlattenError("no shaders given")
    included: set[Path] = set()
    lines: list[str] = []
    for shader in sorted(shaders, key=lambda path: path.name):
        append_file(shader.resolve(), included, lines)
    text = "\n".join(lines) + "\n"
    if f"){DELIMITER}" in text:
        raise FlattenError(f"a shader holds {DELIMITER}, which ends the embedded literal")
    return text


def append_file(path: Path, included: set[Path], lines: list[str]) -> None:
    """Adds the lines of a file; #line keeps file and line of the compiler's messages right."""
    if path in included:
        return
    included.add(path)
    lines.append(f'#line 1 "{path.name}"')
    for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), start=1):
        match = LOCAL_INCLUDE.match(line)
        if match is None:
            lines.append("" if PRAGMA_ONCE.match(line) else line)
            continue
        header = (path.parent / match.group(1)).resolve()
        if not header.is_file():
            raise FlattenError(f"{path.name}:{number}: there is no {match.group(1)}")
        append_file(header, included, lines)
        lines.append(f'#line {number + 1} "{path.name}"')


def sha256(text: str) -> str:
    """The text's SHA-256 in hex."""
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def cpp_source(text: str) -> str:
    """A C++ file that defines what csrc/metal/embedded_source.h declares."""
    return (
        "// Made by tools/flatten_shaders.py from shaders/*.metal.\n"
        '#include "metal/embedded_source.h"\n\n'
        "namespace metal_sdpa {\n\n"
        f'const char* const kEmbeddedShaderSource = R"{DELIMITER}({text}){DELIMITER}";\n'
        f'const char* const kEmbeddedShaderSha256 = "{sha256(text)}";\n\n'
        "}  // namespace metal_sdpa\n"
    )


def verify(binary: Path, text: str) -> list[str]:
    """What is wrong with a binary that should hold the text and its hash; empty: nothing."""
    content = binary.read_bytes()
    problems = []
    if text.encode("ascii") + b"\0" not in content:
        problems.append(f"{binary}: does not hold the flattened source of these shaders")
    if sha256(text).encode("ascii") + b"\0" not in content:
        problems.append(f"{binary}: does not hold its SHA-256 {sha256(text)}")
    return problems


def write(path: Path, text: str) -> None:
    """Writes a file and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


def main(arguments: list[str]) -> int:
    """Runs the command line; 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shaders", nargs="+", type=Path, help=".metal files")
    parser.add_argument("--output", type=Path, help="write the flattened MSL here")
    parser.add_argument("--cpp", type=Path, help="write the C++ file that embeds it here")
    parser.add_argument("--verify", type=Path, metavar="BINARY", help="a binary that must hold it")
    options = parser.parse_args(arguments)
    try:
        text = flatten(options.shaders)
    except (FlattenError, UnicodeDecodeError, OSError) as error:
        print(f"flatten_shaders: {error}", file=sys.stderr)
        return 1
    if options.output is not None:
        write(options.output, text)
    if options.cpp is not None:
        write(options.cpp, cpp_source(text))
    if options.verify is not None:
        problems = verify(options.verify, text)
        for problem in problems:
            print(f"flatten_shaders: {problem}", file=sys.stderr)
        if problems:
            return 1
        print(f"{options.verify.name} holds the flattened source, SHA-256 {sha256(text)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
