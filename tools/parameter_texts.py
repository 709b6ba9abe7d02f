"""Texts made from the arguments of sdpa(): parameter_texts.py stub | readme

stub prints the patterns from which stubgen makes python/metal_sdpa/_core.pyi; readme rewrites the
README's table of arguments. Needs an importable metal_sdpa.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from metal_sdpa._core import parameters

ROOT = Path(__file__).resolve().parents[1]
PATTERNS = ROOT / "csrc" / "bindings" / "stub.pat"
README = ROOT / "README.md"
BEGIN = "<!-- made by tools/make_stub.sh -->\n"
END = "<!-- end -->\n"
FIRST_KEYWORD = "causal"


def stub_signature(**types: str) -> str:
    """The arguments with their types; `types` replaces type and default of some."""
    entries = []
    for name, type_, value, _, _ in parameters():
        if name == FIRST_KEYWORD:
            entries.append("*")
        entries.append(f"{name}: {types.get(name, type_ + (f' = {value}' if value else ''))}")
    return ", ".join(entries)


def stub_patterns() -> str:
    """stub.pat, and the two functions that Python calls without a binding layer."""
    results = {
        "Literal[False] = False": "ArrayT",
        "Literal[True]": "tuple[ArrayT, ArrayT]",
        "bool": "ArrayT | tuple[ArrayT, ArrayT]",
    }
    text = PATTERNS.read_text() + "\n_core.sdpa:\n"
    for index, (return_lse, result) in enumerate(results.items()):
        body = " ..." if index else "\n        \\doc"
        signature = stub_signature(return_lse=return_lse)
        text += f"    @overload\n    def sdpa({signature}) -> {result}:{body}\n\n"
    signature = stub_signature(q="Array", out="Array | None = None")
    return f"{text}_core.plan:\n    def plan({signature}) -> str:\n        \\doc\n"


def readme_table() -> str:
    """A row an argument, in Markdown."""
    rows = ["| argument | default | |", "|---|---|---|"]
    for name, _, value, _, meaning in parameters():
        shown = f"`{value}`" if value else ""
        rows.append(f"| `{name}` | {shown} | {marked(meaning)} |")
    return "\n".join(rows) + "\n"


CODE = (
    r"\[[A-Z][^\]]*\]",  # shapes
    r"__\w+__",
    r"\w+=0",
    r"c \* tanh\(x / c\)",
    r"key_offset \+ j \* key_stride",
    r"slope \* \|[^|]*\|",
)


def marked(meaning: str) -> str:
    """Shapes, names and formulas as code."""
    return re.sub("|".join(CODE), lambda found: f"`{found[0]}`", meaning).replace("|", r"\|")


def with_table(readme: str) -> str:
    before, rest = readme.split(BEGIN)
    return before + BEGIN + readme_table() + END + rest.split(END)[1]


def main() -> None:
    if sys.argv[1:] == ["stub"]:
        print(stub_patterns())
    elif sys.argv[1:] == ["readme"]:
        README.write_text(with_table(README.read_text()))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
